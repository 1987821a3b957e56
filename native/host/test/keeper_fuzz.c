/* libFuzzer target: any bytes as a control message, as a command line and as console output.
 * The first byte chooses; a command line's words are parted by newlines. */
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "json.h"
#include "options.h"
#include "ring.h"

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

static void check(int holds)
{
    if (!holds)
        abort();
}

static void fuzz_command(const char *text, size_t size)
{
    struct command command;
    if (parse_command(text, size, &command) == 0)
        check(command.offset >= 0 && command.deadline_ns >= 0 && strlen(command.reason) <= MAX_REASON);
}

static void fuzz_options(char *text)
{
    static struct options options;
    char *argv[64] = {"keeper"};
    int argc = 1;
    int at;
    for (char *word = strtok(text, "\n"); word && argc < 63; word = strtok(NULL, "\n"))
        argv[argc++] = word;
    if (parse_options(argc, argv, &options, &at) == NULL)
        check(options.argv[0] != NULL && options.dir[0] == '/' && options.uid >= 0 && options.deadline_ns >= 0);
    check(options.bind_count <= MAX_BINDS && options.kept_count <= MAX_KEPT_FDS);
}

static void fuzz_ring_and_json(const unsigned char *bytes, size_t size, char *text)
{
    static struct ring ring;
    static unsigned char back[RING_SIZE];
    char buffer[256];
    struct json json;
    uint64_t start;
    size_t got;
    add_to_ring(&ring, bytes, size);
    got = read_ring(&ring, ring.total - size, back, sizeof back, &start);
    check(got == size && start == ring.total - size && memcmp(back, bytes, size) == 0);
    start_json(&json, buffer, sizeof buffer);
    add_key(&json, "text");
    add_string(&json, text);
    check(strlen(buffer) == json.used && json.used < sizeof buffer);
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size)
{
    char *text;
    if (size == 0)
        return 0;
    text = malloc(size); /* exact, so that a read past the end is seen */
    if (!text)
        return 0;
    memcpy(text, bytes + 1, size - 1);
    if (bytes[0] % 3 == 0) {
        char *exact = malloc(size > 1 ? size - 1 : 1);
        if (exact) {
            memcpy(exact, bytes + 1, size - 1);
            fuzz_command(exact, size - 1);
        }
        free(exact);
    }
    text[size - 1] = '\0';
    if (bytes[0] % 3 == 1)
        fuzz_options(text);
    if (bytes[0] % 3 == 2)
        fuzz_ring_and_json(bytes + 1, size - 1, text);
    free(text);
    return 0;
}
