/* Writes small JSON objects. Pure; tested under sanitizers in host/test. */
#include "json.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void start_json(struct json *json, char *buffer, size_t size)
{
    *json = (struct json){.text = buffer, .size = size};
    buffer[0] = '\0';
}

void add_raw(struct json *json, const char *text)
{
    size_t size = strlen(text);
    if (json->cut || json->used + size + 1 > json->size) {
        json->cut = true;
        return;
    }
    memcpy(json->text + json->used, text, size + 1);
    json->used += size;
}

void add_key(struct json *json, const char *key)
{
    const char *last = json->used ? json->text + json->used - 1 : "{";
    if (*last != '{' && *last != '[')
        add_raw(json, ", ");
    add_string(json, key);
    add_raw(json, ": ");
}

/* Anything but plain ASCII becomes \u00XX, byte by byte: paths are bytes, and the reader must not choke on them. */
void add_string(struct json *json, const char *value)
{
    add_raw(json, "\"");
    for (; *value; value++) {
        unsigned char c = (unsigned char)*value;
        char escaped[8];
        if (c < 0x20 || c >= 0x7f || c == '"' || c == '\\')
            (void)snprintf(escaped, sizeof escaped, "\\u%04x", c);
        else
            (void)snprintf(escaped, sizeof escaped, "%c", c);
        add_raw(json, escaped);
    }
    add_raw(json, "\"");
}

void add_number(struct json *json, int64_t value)
{
    char digits[24];
    (void)snprintf(digits, sizeof digits, "%" PRId64, value);
    add_raw(json, digits);
}
