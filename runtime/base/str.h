/* str: string views, formatted strings in arenas, a growing text buffer, and "did you mean". */
#ifndef MC_BASE_STR_H
#define MC_BASE_STR_H

#include "moec/base.h"
#include "runtime/base/arena.h"

#include <stdarg.h>

/* A view: not owned, not always NUL-terminated (arena strings always are). */
typedef struct mc_str {
    const char *data;
    size_t len;
} mc_str;

#define MC_STR(literal) ((mc_str){(literal), sizeof(literal) - 1})
#define MC_STR_INIT(literal)                                                                                           \
    {                                                                                                                  \
        (literal), sizeof(literal) - 1                                                                                 \
    }
/* For printf: "%.*s", MC_FMT(s) */
#define MC_FMT(s) (int)(s).len, (s).data ? (s).data : ""

mc_str mc_str_of(const char *c_string); /* NULL gives the empty string */
bool mc_str_eq(mc_str a, mc_str b);
bool mc_str_is(mc_str a, const char *c_string);
int mc_str_cmp(mc_str a, mc_str b); /* bytewise, as memcmp; shorter first */
bool mc_str_starts(mc_str s, const char *prefix);
bool mc_str_ends(mc_str s, const char *suffix);
mc_str mc_str_slice(mc_str s, size_t begin, size_t end);
/* Copies, in the arena, NUL-terminated. */
mc_str mc_str_dup(mc_arena *arena, mc_str s);
mc_str mc_strf(mc_arena *arena, const char *format, ...) MOEC_PRINTF(2, 3);
mc_str mc_strfv(mc_arena *arena, const char *format, va_list args);
/* Edit distance (insert, delete, replace, swap of neighbours), for "did you mean"; stops counting above max. */
int mc_str_distance(mc_str a, mc_str b, int max);
/* The candidate nearest to `word`, or the empty string when none is near enough to be worth offering. */
mc_str mc_str_nearest(mc_str word, const mc_str *candidates, size_t n);

/* A growing heap buffer, always NUL-terminated once something was written. */
typedef struct mc_buf {
    char *data;
    size_t len, cap;
} mc_buf;

void mc_buf_fini(mc_buf *buf); /* frees; a zeroed mc_buf is ready for use */
void mc_buf_clear(mc_buf *buf);
void mc_buf_write(mc_buf *buf, const void *data, size_t n_bytes);
void mc_buf_putc(mc_buf *buf, char c);
void mc_buf_puts(mc_buf *buf, const char *c_string);
void mc_buf_str(mc_buf *buf, mc_str s);
void mc_buf_printf(mc_buf *buf, const char *format, ...) MOEC_PRINTF(2, 3);
void mc_buf_vprintf(mc_buf *buf, const char *format, va_list args);
mc_str mc_buf_view(const mc_buf *buf);
/* The shortest decimal text that reads back as the same double, always with '.', 'e', "inf" or "nan" in it
 * (so that it is never taken for an integer). */
void mc_buf_double(mc_buf *buf, double value);

#endif
