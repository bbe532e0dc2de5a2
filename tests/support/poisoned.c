#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "tests/support/poisoned.h"

#include <check.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, ALIGN = 64 };

typedef struct notes { /* in the first page of a buffer */
    struct notes *next, *previous;
    unsigned char *begin;
    size_t n_bytes;
} notes;

static notes *all;

/* The whole pages of a buffer: one of notes, the buffer, and one that must not be touched. */
static size_t
whole_pages(size_t n_bytes)
{
    return (n_bytes + ALIGN + PAGE - 1) / PAGE * PAGE + (size_t)2 * PAGE;
}

/* As near to the forbidden page as alignment allows; the bytes between are checked when it is freed. */
void *
mc_poisoned(int64_t n)
{
    ck_assert_int_ge(n, 0);
    size_t n_bytes = (size_t)n, total = whole_pages(n_bytes);
    char *base = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert(base != MAP_FAILED);
    ck_assert_int_eq(mprotect(base + total - PAGE, PAGE, PROT_NONE), 0);
    memset(base, MC_POISON, total - PAGE);
    size_t at = (total - PAGE - n_bytes) / ALIGN * ALIGN;
    memcpy(base + at - ALIGN, &(char *){base}, sizeof base);
    memcpy(base + at - ALIGN + sizeof base, &n_bytes, sizeof n_bytes);
    notes *mine = (notes *)(void *)base;
    *mine = (notes){all, NULL, (unsigned char *)base + at, n_bytes};
    if (all) all->previous = mine;
    all = mine;
    return base + at;
}

void *
mc_poisoned_around(const void *p, size_t *out_n_bytes)
{
    for (const notes *n = all; n; n = n->next) {
        if ((uintptr_t)p < (uintptr_t)n->begin || (uintptr_t)p > (uintptr_t)n->begin + n->n_bytes) continue;
        *out_n_bytes = n->n_bytes;
        return n->begin;
    }
    return NULL;
}

void
mc_poisoned_free(void *p)
{
    if (!p) return;
    char *base;
    size_t n_bytes;
    memcpy(&base, (char *)p - ALIGN, sizeof base);
    memcpy(&n_bytes, (char *)p - ALIGN + sizeof base, sizeof n_bytes);
    const unsigned char *end = (unsigned char *)base + whole_pages(n_bytes) - PAGE;
    for (const unsigned char *c = (unsigned char *)p + n_bytes; c < end; c++) {
        ck_assert_msg(*c == MC_POISON, "something wrote beyond a buffer of %zu bytes", n_bytes);
    }
    notes *mine = (notes *)(void *)base;
    if (mine->next) mine->next->previous = mine->previous;
    if (mine->previous) mine->previous->next = mine->next;
    if (all == mine) all = mine->next;
    munmap(base, whole_pages(n_bytes));
}
