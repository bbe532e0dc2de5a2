/* A list of blocks, newest first. Large requests get a block of their own. */
#include "runtime/base/arena.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_BLOCK_BYTES = 16 * 1024, MAX_BLOCK_BYTES = 1024 * 1024, ALIGN = 16 };

typedef struct block {
    struct block *next;
    size_t capacity, used;
    _Alignas(ALIGN) unsigned char data[];
} block;

struct mc_arena {
    block *blocks;
    size_t next_bytes;
};

static _Noreturn void
out_of_memory(size_t n_bytes)
{
    fprintf(stderr, "moec: out of memory (%zu bytes asked for)\n", n_bytes);
    abort();
}

mc_arena *
mc_arena_create(void)
{
    mc_arena *arena = calloc(1, sizeof *arena);
    if (!arena) out_of_memory(sizeof *arena);
    arena->next_bytes = FIRST_BLOCK_BYTES;
    return arena;
}

static void
free_blocks(block *b)
{
    while (b) {
        block *next = b->next;
        free(b);
        b = next;
    }
}

void
mc_arena_destroy(mc_arena *arena)
{
    if (!arena) return;
    free_blocks(arena->blocks);
    free(arena);
}

void
mc_arena_reset(mc_arena *arena)
{
    block *keep = arena->blocks;
    if (!keep) return;
    free_blocks(keep->next);
    keep->next = NULL;
#ifndef NDEBUG
    memset(keep->data, 0xA5, keep->used);
#endif
    keep->used = 0;
}

void *
mc_arena_alloc(mc_arena *arena, size_t n_bytes)
{
    if (n_bytes > SIZE_MAX / 2) out_of_memory(n_bytes);
    size_t need = (n_bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    block *b = arena->blocks;
    if (!b || b->capacity - b->used < need) {
        size_t capacity = arena->next_bytes > need ? arena->next_bytes : need;
        if (arena->next_bytes < MAX_BLOCK_BYTES) arena->next_bytes *= 2;
        block *fresh = malloc(sizeof *fresh + capacity);
        if (!fresh) out_of_memory(capacity);
        *fresh = (block){.next = b, .capacity = capacity};
        arena->blocks = b = fresh;
    }
    void *p = b->data + b->used;
    b->used += need;
    memset(p, 0, need);
    return p;
}

void *
mc_arena_copy(mc_arena *arena, const void *data, size_t n_bytes)
{
    void *p = mc_arena_alloc(arena, n_bytes);
    if (n_bytes) memcpy(p, data, n_bytes);
    return p;
}

size_t
mc_arena_used_bytes(const mc_arena *arena)
{
    size_t n = 0;
    for (const block *b = arena->blocks; b; b = b->next) n += b->used;
    return n;
}
