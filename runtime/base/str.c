#include "runtime/base/str.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

mc_str
mc_str_of(const char *c_string)
{
    return c_string ? (mc_str){c_string, strlen(c_string)} : (mc_str){"", 0};
}

bool
mc_str_eq(mc_str a, mc_str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

bool
mc_str_is(mc_str a, const char *c_string)
{
    return mc_str_eq(a, mc_str_of(c_string));
}

int
mc_str_cmp(mc_str a, mc_str b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int c = n ? memcmp(a.data, b.data, n) : 0;
    if (c) return c;
    return (a.len > b.len) - (a.len < b.len);
}

bool
mc_str_starts(mc_str s, const char *prefix)
{
    size_t n = strlen(prefix);
    return s.len >= n && memcmp(s.data, prefix, n) == 0;
}

bool
mc_str_ends(mc_str s, const char *suffix)
{
    size_t n = strlen(suffix);
    return s.len >= n && memcmp(s.data + s.len - n, suffix, n) == 0;
}

mc_str
mc_str_slice(mc_str s, size_t begin, size_t end)
{
    if (end > s.len) end = s.len;
    if (begin > end) begin = end;
    return (mc_str){s.data + begin, end - begin};
}

mc_str
mc_str_dup(mc_arena *arena, mc_str s)
{
    char *p = mc_arena_alloc(arena, s.len + 1);
    if (s.len) memcpy(p, s.data, s.len);
    return (mc_str){p, s.len};
}

mc_str
mc_strfv(mc_arena *arena, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    if (n < 0) n = 0;
    char *p = mc_arena_alloc(arena, (size_t)n + 1);
    vsnprintf(p, (size_t)n + 1, format, again);
    va_end(again);
    return (mc_str){p, (size_t)n};
}

mc_str
mc_strf(mc_arena *arena, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    mc_str s = mc_strfv(arena, format, args);
    va_end(args);
    return s;
}

int
mc_str_distance(mc_str a, mc_str b, int max)
{
    enum { LIMIT = 64 };
    if (a.len > LIMIT || b.len > LIMIT) return max + 1;
    int before[LIMIT + 1] = {0}, last[LIMIT + 1], now[LIMIT + 1];
    for (size_t j = 0; j <= b.len; j++) last[j] = (int)j;
    for (size_t i = 1; i <= a.len; i++) {
        now[0] = (int)i;
        for (size_t j = 1; j <= b.len; j++) {
            int best = last[j - 1] + (a.data[i - 1] != b.data[j - 1]);
            if (last[j] + 1 < best) best = last[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            bool swapped = i > 1 && j > 1 && a.data[i - 1] == b.data[j - 2] && a.data[i - 2] == b.data[j - 1];
            if (swapped && before[j - 2] + 1 < best) best = before[j - 2] + 1;
            now[j] = best;
        }
        memcpy(before, last, sizeof before);
        memcpy(last, now, sizeof last);
    }
    return last[b.len] > max ? max + 1 : last[b.len];
}

mc_str
mc_str_nearest(mc_str word, const mc_str *candidates, size_t n)
{
    int limit = word.len <= 3 ? 1 : word.len <= 6 ? 2 : 3;
    mc_str best = {"", 0};
    for (size_t i = 0; i < n; i++) {
        int d = mc_str_distance(word, candidates[i], limit);
        if (d > limit) continue;
        best = candidates[i];
        limit = d - 1;
        if (limit < 0) break;
    }
    return best;
}

void
mc_buf_fini(mc_buf *buf)
{
    free(buf->data);
    *buf = (mc_buf){0};
}

void
mc_buf_clear(mc_buf *buf)
{
    buf->len = 0;
    if (buf->data) buf->data[0] = 0;
}

static void
reserve(mc_buf *buf, size_t more)
{
    size_t need = buf->len + more + 1;
    if (need <= buf->cap) return;
    size_t cap = buf->cap ? buf->cap * 2 : 256;
    while (cap < need) cap *= 2;
    buf->data = realloc(buf->data, cap);
    if (!buf->data) {
        fprintf(stderr, "moec: out of memory (%zu bytes asked for)\n", cap);
        abort();
    }
    buf->cap = cap;
}

void
mc_buf_write(mc_buf *buf, const void *data, size_t n_bytes)
{
    reserve(buf, n_bytes);
    if (n_bytes) memcpy(buf->data + buf->len, data, n_bytes);
    buf->len += n_bytes;
    buf->data[buf->len] = 0;
}

void
mc_buf_putc(mc_buf *buf, char c)
{
    mc_buf_write(buf, &c, 1);
}

void
mc_buf_puts(mc_buf *buf, const char *c_string)
{
    mc_buf_write(buf, c_string, strlen(c_string));
}

void
mc_buf_str(mc_buf *buf, mc_str s)
{
    mc_buf_write(buf, s.data, s.len);
}

void
mc_buf_vprintf(mc_buf *buf, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    if (n > 0) {
        reserve(buf, (size_t)n);
        vsnprintf(buf->data + buf->len, (size_t)n + 1, format, again);
        buf->len += (size_t)n;
    }
    va_end(again);
}

void
mc_buf_printf(mc_buf *buf, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    mc_buf_vprintf(buf, format, args);
    va_end(args);
}

mc_str
mc_buf_view(const mc_buf *buf)
{
    return buf->data ? (mc_str){buf->data, buf->len} : (mc_str){"", 0};
}

void
mc_buf_double(mc_buf *buf, double value)
{
    if (isnan(value)) {
        mc_buf_puts(buf, "nan");
        return;
    }
    if (isinf(value)) {
        mc_buf_puts(buf, value < 0 ? "-inf" : "inf");
        return;
    }
    char text[64];
    int digits = 0;
    do snprintf(text, sizeof text, "%.*e", digits++, value);
    while (digits < 17 && strtod(text, NULL) != value);
    int exponent = (int)strtol(strchr(text, 'e') + 1, NULL, 10);
    int decimals = digits - 1 - exponent;
    if (exponent >= -4 && exponent < 16)
        snprintf(text, sizeof text, "%.*f", decimals > 0 ? decimals : 0, value);
    else
        snprintf(text, sizeof text, "%.*g", digits, value);
    mc_buf_puts(buf, text);
    if (!strpbrk(text, ".e")) mc_buf_puts(buf, ".0");
}
