// What the sink remembers: objects by key, uploads by id. Every function takes the one lock.
#ifndef OBJECTS_H
#define OBJECTS_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 65536
#define MAX_PARTS 10000

typedef struct Object {
    char *key;
    uint64_t size;
    char *data;     // NULL where the bytes were thrown away
    char sha256[48]; // base64, as the client told it; empty where it did not
    char type[64], etag[48];
    struct Object *next;
} Object;

typedef struct Upload {
    uint64_t id, sizes[MAX_PARTS + 1];
    char *key, type[64];
    struct Upload *next;
} Upload;

static Object *table[BUCKETS];
static size_t object_count;
static Upload *uploads;
static uint64_t last_number;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static inline Object **slot_of(const char *key) {
    uint32_t hash = 2166136261u;
    for (const char *c = key; *c; c++) hash = (hash ^ (unsigned char)*c) * 16777619u;
    Object **slot = &table[hash % BUCKETS];
    while (*slot && strcmp((*slot)->key, key)) slot = &(*slot)->next;
    return slot;
}

static inline uint64_t new_number(void) {
    pthread_mutex_lock(&lock);
    uint64_t number = ++last_number;
    pthread_mutex_unlock(&lock);
    return number;
}

// Puts the object in its place, and says true; false where it must be new and is not. What was
// there is forgotten, not freed: another thread may be sending it.
static inline int object_put(Object *object, int must_be_new) {
    pthread_mutex_lock(&lock);
    Object **slot = slot_of(object->key);
    int refused = must_be_new && *slot;
    if (!refused) {
        object_count += !*slot;
        object->next = *slot ? (*slot)->next : NULL;
        *slot = object;
    }
    pthread_mutex_unlock(&lock);
    return !refused;
}

static inline Object *object_get(const char *key) {
    pthread_mutex_lock(&lock);
    Object *found = *slot_of(key);
    pthread_mutex_unlock(&lock);
    return found;
}

static inline void object_delete(const char *key) {
    pthread_mutex_lock(&lock);
    Object **slot = slot_of(key);
    if (*slot) *slot = (*slot)->next, object_count--;
    pthread_mutex_unlock(&lock);
}

static inline int by_key(const void *a, const void *b) {
    return strcmp((*(Object *const *)a)->key, (*(Object *const *)b)->key);
}

// The objects below a prefix and behind a key, in order; the caller frees the array.
static inline Object **objects_below(const char *prefix, const char *after, size_t *count) {
    size_t n = 0, length = strlen(prefix);
    pthread_mutex_lock(&lock);
    Object **found = malloc((object_count + 1) * sizeof *found);
    for (size_t i = 0; i < BUCKETS; i++)
        for (Object *o = table[i]; o; o = o->next)
            if (!strncmp(o->key, prefix, length) && strcmp(o->key, after) > 0) found[n++] = o;
    pthread_mutex_unlock(&lock);
    qsort(found, n, sizeof *found, by_key);
    *count = n;
    return found;
}

static inline uint64_t upload_begin(const char *key, const char *type) {
    Upload *upload = calloc(1, sizeof *upload);
    upload->key = strdup(key);
    strcpy(upload->type, type);
    upload->id = new_number();
    pthread_mutex_lock(&lock);
    upload->next = uploads, uploads = upload;
    pthread_mutex_unlock(&lock);
    return upload->id;
}

static inline int upload_part(uint64_t id, long number, uint64_t size) {
    pthread_mutex_lock(&lock);
    Upload *u = uploads;
    while (u && u->id != id) u = u->next;
    int known = u && number >= 1 && number <= MAX_PARTS;
    if (known) u->sizes[number] = size;
    pthread_mutex_unlock(&lock);
    return known;
}

// Takes the upload out; the caller frees it. NULL where there is none.
static inline Upload *upload_end(uint64_t id) {
    pthread_mutex_lock(&lock);
    Upload **u = &uploads;
    while (*u && (*u)->id != id) u = &(*u)->next;
    Upload *found = *u;
    if (found) *u = found->next;
    pthread_mutex_unlock(&lock);
    return found;
}

#endif
