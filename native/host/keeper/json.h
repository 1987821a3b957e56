/* Writes small JSON objects into a caller's buffer. Pure; what does not fit sets `cut` and is left out. */
#ifndef KEEPER_JSON_H
#define KEEPER_JSON_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json {
    char *text; /* always terminated */
    size_t size;
    size_t used;
    bool cut;
};

void start_json(struct json *json, char *buffer, size_t size);
void add_raw(struct json *json, const char *text);
void add_key(struct json *json, const char *key); /* with the comma where one is due */
void add_string(struct json *json, const char *value);
void add_number(struct json *json, int64_t value);

#endif
