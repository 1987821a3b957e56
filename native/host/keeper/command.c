/* Parses control messages. Pure: no I/O, no allocation; fuzzed in host/test. */
#include "command.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "options.h"

static bool is_word(const char *text, size_t size, const char *word)
{
    return size == strlen(word) && memcmp(text, word, size) == 0;
}

/* Reasons end in exit.json: small letters, digits, - and _ need no escape there and no trust here. */
static int parse_reason(const char *text, size_t size, char *reason)
{
    if (size == 0 || size > MAX_REASON)
        return -EINVAL;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_'))
            return -EINVAL;
    }
    memcpy(reason, text, size);
    reason[size] = '\0';
    return 0;
}

static int parse_argument(const char *text, size_t size, struct command *command)
{
    switch (command->verb) {
    case VERB_KILL:
        return parse_reason(text, size, command->reason);
    case VERB_CONSOLE:
        command->offset = parse_number(text, size, INT64_MAX);
        return command->offset < 0 ? -EINVAL : 0;
    case VERB_DEADLINE:
        if (is_word(text, size, "none"))
            command->deadline_ns = NO_DEADLINE;
        else
            command->deadline_ns = parse_number(text, size, INT64_MAX - 1);
        return command->deadline_ns < 0 ? -EINVAL : 0;
    case VERB_LEASE: /* never without a limit: from then on nothing else bounds the VM */
        command->deadline_ns = parse_number(text, size, INT64_MAX - 1);
        return command->deadline_ns < 0 ? -EINVAL : 0;
    case VERB_VERSION:
    case VERB_STATUS:
    case VERB_PIDFD:
        break;
    }
    return -EINVAL;
}

int parse_command(const char *text, size_t size, struct command *command)
{
    static const struct {
        const char *name;
        enum verb verb;
        bool takes_argument;
    } known[] = {
        {"VERSION", VERB_VERSION, false}, {"STATUS", VERB_STATUS, false}, {"DEADLINE", VERB_DEADLINE, true},
        {"KILL", VERB_KILL, true},        {"PIDFD", VERB_PIDFD, false},   {"CONSOLE", VERB_CONSOLE, true},
        {"LEASE", VERB_LEASE, true},
    };
    const char *space = memchr(text, ' ', size);
    size_t name_size = space ? (size_t)(space - text) : size;

    memset(command, 0, sizeof *command);
    if (size > MAX_COMMAND)
        return -EINVAL;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!is_word(text, name_size, known[i].name) || known[i].takes_argument != (space != NULL))
            continue;
        command->verb = known[i].verb;
        return space ? parse_argument(space + 1, size - name_size - 1, command) : 0;
    }
    return -EINVAL;
}
