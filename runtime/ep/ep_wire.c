/* ep_wire: rows as they lie and as they travel. Rows of equal types are copied, neighbours in one piece; f32 is
 * narrowed to bf16, or to f8e4m3 with a scale for each run of 128 elements. A row of f8e4m3: all its scales, then all
 * elements, up to a multiple of 4 bytes. Inner loops have constant lengths, so that compilers make vectors of them. */
#include "runtime/ep/ep_state.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { BLOCK = 32 }; /* elements of an inner loop */

bool
mc_ep_codec(mc_ep_row row, int64_t max_row_bytes, ep_codec *out)
{
    size_t bytes = moec_dtype_bytes(row.dtype);
    if (row.width < 0 || bytes == 0 || row.width > max_row_bytes / (int64_t)bytes) return false;
    *out = (ep_codec){EP_SAME, row.width, (size_t)row.width * bytes, (size_t)row.width * bytes};
    if (row.wire == row.dtype) return true;
    if (row.dtype != MOEC_F32) return false;
    if (row.wire == MOEC_BF16) {
        out->code = EP_BF16;
        out->wire_bytes = (size_t)row.width * 2;
        return true;
    }
    if (row.wire != MOEC_F8E4M3) return false;
    out->code = EP_F8;
    out->wire_bytes = (size_t)((row.width + EP_RUN - 1) / EP_RUN * 4 + (row.width + 3) / 4 * 4);
    return true;
}

/* ---- elements -------------------------------------------------------------------------------------------------- */

static inline uint32_t
bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float
float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static inline uint16_t
to_bf16(float x)
{
    uint32_t u = bits_of(x);
    uint32_t rounded = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
    return (uint16_t)((u & 0x7FFFFFFF) > 0x7F800000 ? (u >> 16 | 0x40) : rounded);
}

static inline float
from_bf16(uint16_t bits)
{
    return float_of((uint32_t)bits << 16);
}

/* As mc_f32_to_f8e4m3, without branches; infinities are NaN. */
static inline uint8_t
to_f8(float x)
{
    uint32_t u = bits_of(x), a = u & 0x7FFFFFFF;
    uint32_t normal = ((a + 0x7FFFF + (a >> 20 & 1)) >> 20) - (120u << 3);
    uint32_t small = bits_of(float_of(a) + 0x1p14f) - bits_of(0x1p14f); /* the sum rounds to multiples of 2^-9 */
    uint32_t code = a < 0x3C800000 ? small : normal;                    /* 2^-6 */
    code = code > 0x7E ? 0x7E : code;
    code = a >= 0x7F800000 ? 0x7F : code;
    return (uint8_t)(code | (u >> 24 & 0x80));
}

static inline float
from_f8(uint8_t bits)
{
    uint32_t m = bits & 0x7F;
    uint32_t normal = (m << 20) + (120u << 23);
    uint32_t small = bits_of((float)(int32_t)m * 0x1p-9f);
    uint32_t u = m < 8 ? small : normal;
    u = m == 0x7F ? 0x7FC00000 : u;
    return float_of(u | (uint32_t)(bits & 0x80) << 24);
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

static float
scale_of(const float *x, int64_t n)
{
    float most = 0;
    for (int64_t i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        most = a > most && a <= FLT_MAX ? a : most;
    }
    if (most == 0) return 1;
    float scale = most / 448;
    return scale < FLT_MIN ? FLT_MIN : scale;
}

static void
encode_f8(int64_t width, unsigned char *restrict wire, const float *restrict x)
{
    uint8_t *restrict q = wire + (width + EP_RUN - 1) / EP_RUN * 4;
    for (int64_t begin = 0; begin < width; begin += EP_RUN) {
        int64_t n = width - begin < EP_RUN ? width - begin : EP_RUN;
        float scale = n == EP_RUN ? scale_of(x + begin, EP_RUN) : scale_of(x + begin, n);
        memcpy(wire + begin / EP_RUN * 4, &scale, 4);
        if (n == EP_RUN)
            for (int i = 0; i < EP_RUN; i++) q[begin + i] = to_f8(x[begin + i] / scale);
        else
            for (int64_t i = begin; i < width; i++) q[i] = to_f8(x[i] / scale);
    }
    memset(q + width, 0, (size_t)(-width & 3));
}

static void
encode_bf16(int64_t width, uint16_t *restrict wire, const float *restrict x)
{
    int64_t i = 0;
    for (; i + BLOCK <= width; i += BLOCK)
        for (int j = 0; j < BLOCK; j++) wire[i + j] = to_bf16(x[i + j]);
    for (; i < width; i++) wire[i] = to_bf16(x[i]);
}

static void
encode(const ep_codec *c, void *wire, const void *row)
{
    switch (c->code) {
    case EP_SAME: memcpy(wire, row, c->row_bytes); break;
    case EP_BF16: encode_bf16(c->width, wire, row); break;
    case EP_F8: encode_f8(c->width, wire, row); break;
    }
}

/* what: an expression of the element i of `wire` as f32; into: "=" or "+=" */
#define ROW(into, what)                                                                                                \
    do {                                                                                                               \
        int64_t i = 0;                                                                                                 \
        for (; i + BLOCK <= width; i += BLOCK)                                                                         \
            for (int64_t j = i; j < i + BLOCK; j++) sum[j] into what(j);                                               \
        for (; i < width; i++) sum[i] into what(i);                                                                    \
    } while (0)

#define F32_AT(i) wire[i]
#define BF16_AT(i) from_bf16(wire[i])

static void
add_f32(int64_t width, float *restrict sum, const float *restrict wire)
{
    ROW(+=, F32_AT);
}

static void
set_bf16(int64_t width, float *restrict sum, const uint16_t *restrict wire)
{
    ROW(=, BF16_AT);
}

static void
add_bf16(int64_t width, float *restrict sum, const uint16_t *restrict wire)
{
    ROW(+=, BF16_AT);
}

#define F8_ROW(into)                                                                                                   \
    const uint8_t *restrict q = wire + (width + EP_RUN - 1) / EP_RUN * 4;                                              \
    for (int64_t begin = 0; begin < width; begin += EP_RUN) {                                                          \
        float scale;                                                                                                   \
        memcpy(&scale, wire + begin / EP_RUN * 4, 4);                                                                  \
        if (width - begin >= EP_RUN)                                                                                   \
            for (int i = 0; i < EP_RUN; i++) sum[begin + i] into from_f8(q[begin + i]) * scale;                        \
        else                                                                                                           \
            for (int64_t i = begin; i < width; i++) sum[i] into from_f8(q[i]) * scale;                                 \
    }

static void
set_f8(int64_t width, float *restrict sum, const unsigned char *restrict wire)
{
    F8_ROW(=)
}

static void
add_f8(int64_t width, float *restrict sum, const unsigned char *restrict wire)
{
    F8_ROW(+=)
}

void
mc_ep_set(const ep_codec *c, float *sum, const void *wire)
{
    switch (c->code) {
    case EP_SAME: memcpy(sum, wire, c->row_bytes); break;
    case EP_BF16: set_bf16(c->width, sum, wire); break;
    case EP_F8: set_f8(c->width, sum, wire); break;
    }
}

void
mc_ep_add(const ep_codec *c, float *sum, const void *wire)
{
    switch (c->code) {
    case EP_SAME: add_f32(c->width, sum, wire); break;
    case EP_BF16: add_bf16(c->width, sum, wire); break;
    case EP_F8: add_f8(c->width, sum, wire); break;
    }
}

static void
round_row(const ep_codec *c, void *to, const void *from)
{
    const float *x = from;
    float *y = to;
    for (int64_t begin = 0; begin < c->width; begin += EP_RUN) { /* scales are of a run: so rows can be cut there */
        _Alignas(4) unsigned char wire[2 * EP_RUN];
        ep_codec piece = *c;
        piece.width = c->width - begin < EP_RUN ? c->width - begin : EP_RUN;
        encode(&piece, wire, x + begin);
        mc_ep_set(&piece, y + begin, wire);
    }
}

/* ---- many rows ------------------------------------------------------------------------------------------------- */

/* How many of index[0 .. n - 1] follow each other. */
static int64_t
neighbours(const int32_t *index, int64_t n)
{
    int64_t i = 1;
    while (i < n && index[i] == index[i - 1] + 1) i++;
    return i;
}

void
mc_ep_pack(const ep_codec *c, void *wire, const void *rows, const int32_t *index, int64_t n)
{
    unsigned char *to = wire;
    const unsigned char *from = rows;
    if (c->row_bytes == 0 || n == 0) return;
    if (c->code == EP_SAME && !index) {
        memcpy(to, from, (size_t)n * c->row_bytes);
    } else if (c->code == EP_SAME && c->row_bytes == 4) {
        for (int64_t i = 0; i < n; i++) memcpy(to + i * 4, from + (size_t)index[i] * 4, 4);
    } else if (c->code == EP_SAME) {
        for (int64_t i = 0, run; i < n; i += run) {
            run = neighbours(index + i, n - i);
            memcpy(to + (size_t)i * c->row_bytes, from + (size_t)index[i] * c->row_bytes, (size_t)run * c->row_bytes);
        }
    } else {
        for (int64_t i = 0; i < n; i++)
            encode(c, to + (size_t)i * c->wire_bytes, from + (size_t)(index ? index[i] : i) * c->row_bytes);
    }
}

void
mc_ep_unpack(const ep_codec *c, void *rows, const int32_t *index, const void *wire, int64_t n)
{
    unsigned char *to = rows;
    const unsigned char *from = wire;
    if (c->row_bytes == 0 || n == 0) return;
    if (c->code == EP_SAME && !index) {
        memcpy(to, from, (size_t)n * c->row_bytes);
    } else if (c->code == EP_SAME && c->row_bytes == 4) {
        for (int64_t i = 0; i < n; i++) memcpy(to + (size_t)index[i] * 4, from + i * 4, 4);
    } else if (c->code == EP_SAME) {
        for (int64_t i = 0, run; i < n; i += run) {
            run = neighbours(index + i, n - i);
            memcpy(to + (size_t)index[i] * c->row_bytes, from + (size_t)i * c->row_bytes, (size_t)run * c->row_bytes);
        }
    } else {
        for (int64_t i = 0; i < n; i++)
            mc_ep_set(c, (float *)(void *)(to + (size_t)(index ? index[i] : i) * c->row_bytes),
                      from + (size_t)i * c->wire_bytes);
    }
}

void
mc_ep_move(const ep_codec *c, void *to, const int32_t *to_index, const void *from, const int32_t *from_index, int64_t n)
{
    if (c->row_bytes == 0 || n == 0) return;
    for (int64_t i = 0, run; i < n; i += run) {
        size_t there = (size_t)(to_index ? to_index[i] : i), here = (size_t)from_index[i];
        unsigned char *target = (unsigned char *)to + there * c->row_bytes;
        const unsigned char *source = (const unsigned char *)from + here * c->row_bytes;
        run = 1;
        if (c->code != EP_SAME) {
            round_row(c, target, source);
            continue;
        }
        run = neighbours(from_index + i, n - i);
        if (to_index) run = neighbours(to_index + i, run);
        memcpy(target, source, (size_t)run * c->row_bytes);
    }
}
