/* ep_wire: rows as they lie and as they travel. Rows of equal types are copied, neighbours in one piece; f32 is
 * narrowed to bf16, or to f8e4m3 with a scale for each run of 128 elements. A row of f8e4m3: all its scales, then all
 * elements, up to a multiple of 4 bytes. Inner loops have constant lengths, so that compilers make vectors of them. */
#include "runtime/ep/ep_state.h"

#include "runtime/base/dtype.h"

#include <float.h>
#include <math.h>
#include <string.h>

bool
mc_ep_codec(mc_ep_row row, int64_t max_row_bytes, const float *values, ep_codec *out)
{
    size_t bytes = moec_dtype_bytes(row.dtype);
    if (row.width < 0 || bytes == 0 || row.width > max_row_bytes / (int64_t)bytes) return false;
    *out = (ep_codec){EP_SAME, row.width, (size_t)row.width * bytes, (size_t)row.width * bytes, values};
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

/* ---- runs of EP_RUN elements ----------------------------------------------------------------------------------- */

enum { LANES = 8 };

typedef uint32_t __attribute__((may_alias)) bits;
typedef int32_t __attribute__((may_alias)) magnitude; /* of a float without its sign: in the order of what they mean */

/* As mc_f32_to_bf16. */
static void
narrow_bf16(uint16_t *restrict to, const float *restrict x)
{
    const bits *restrict u = (const bits *)x;
    for (int i = 0; i < EP_RUN; i++) {
        uint32_t rounded = (u[i] + 0x7FFF + (u[i] >> 16 & 1)) >> 16;
        to[i] = (uint16_t)((int32_t)(u[i] & 0x7FFFFFFF) > 0x7F800000 ? u[i] >> 16 | 0x40 : rounded);
    }
}

static void
widen_bf16(float *restrict x, const uint16_t *restrict from)
{
    bits *restrict u = (bits *)x;
    for (int i = 0; i < EP_RUN; i++) u[i] = (uint32_t)from[i] << 16;
}

/* max|x| / 448 over what is finite, and never so small that dividing by it overflows; 1 where all is zero. */
static float
scale_of(const float *x, bool *out_finite)
{
    float most[LANES] = {0}, nothing[LANES] = {0}; /* NaN when something is not finite */
    for (int i = 0; i < EP_RUN; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float a = fabsf(x[i + j]);
            most[j] = a > most[j] ? a : most[j];
            nothing[j] += a * 0;
        }
    for (int j = 1; j < LANES; j++) {
        most[0] = most[j] > most[0] ? most[j] : most[0];
        nothing[0] += nothing[j];
    }
    *out_finite = nothing[0] == 0;
    if (!*out_finite) {
        most[0] = 0;
        for (int i = 0; i < EP_RUN; i++)
            if (isfinite(x[i]) && fabsf(x[i]) > most[0]) most[0] = fabsf(x[i]);
    }
    float scale = most[0] / 448;
    return most[0] == 0 ? 1 : scale < FLT_MIN ? FLT_MIN : scale;
}

/* As mc_f32_to_f8e4m3 of v = x / scale where all are finite: then nothing is above 448. With 2^e the power of 2 in |v|,
 * at least 2^-6, the sum |v| + 2^(e + 20) is rounded to multiples of 2^(e - 3), and ends in the digits that the code
 * has: the code of v is 8 (e + 6) more than they say. */
static void
narrow_f8(uint8_t *restrict to, const float *restrict x, float scale)
{
    float v[EP_RUN], power[EP_RUN], sum[EP_RUN];
    int32_t codes[EP_RUN];
    const magnitude *signs = (const magnitude *)v, *digits = (const magnitude *)sum;
    magnitude *powers = (magnitude *)power;
    for (int i = 0; i < EP_RUN; i++) {
        v[i] = x[i] / scale;
        float a = fabsf(v[i]);
        power[i] = a > 0x1p-6f ? a : 0x1p-6f;
    }
    for (int i = 0; i < EP_RUN; i++) powers[i] = (powers[i] & 0x7F800000) + (20 << 23);
    for (int i = 0; i < EP_RUN; i++) sum[i] = fabsf(v[i]) + power[i];
    for (int i = 0; i < EP_RUN; i++) {
        int32_t code = digits[i] - powers[i] + (powers[i] >> 20) - 8 * (127 + 20 - 6);
        codes[i] = code | (signs[i] >> 24 & 0x80);
    }
    for (int i = 0; i < EP_RUN; i++) to[i] = (uint8_t)codes[i];
}

static void
narrow_f8_with_nan(uint8_t *to, const float *x, float scale)
{
    for (int i = 0; i < EP_RUN; i++) to[i] = isfinite(x[i]) ? mc_f32_to_f8e4m3(x[i] / scale) : 0x7F;
}

/* ---- rows: the last run is filled up with zeros ------------------------------------------------------------------ */

static int64_t
run_at(const ep_codec *c, int64_t begin)
{
    return c->width - begin < EP_RUN ? c->width - begin : EP_RUN;
}

/* Where the elements of f8e4m3 begin, behind their scales. */
static int64_t
scales_bytes(const ep_codec *c)
{
    return (c->width + EP_RUN - 1) / EP_RUN * 4;
}

static void
encode(const ep_codec *c, unsigned char *wire, const float *x)
{
    for (int64_t begin = 0; begin < c->width; begin += EP_RUN) {
        float filled[EP_RUN];
        uint16_t halves[EP_RUN];
        uint8_t quarters[EP_RUN];
        int64_t n = run_at(c, begin);
        const float *from = x + begin;
        if (n < EP_RUN) {
            memset(filled, 0, sizeof filled);
            memcpy(filled, from, (size_t)n * sizeof *from);
            from = filled;
        }
        if (c->code == EP_BF16) {
            narrow_bf16(halves, from);
            memcpy(wire + begin * 2, halves, (size_t)n * sizeof *halves);
            continue;
        }
        bool finite;
        float scale = scale_of(from, &finite);
        (finite ? narrow_f8 : narrow_f8_with_nan)(quarters, from, scale);
        memcpy(wire + begin / EP_RUN * 4, &scale, sizeof scale);
        memcpy(wire + scales_bytes(c) + begin, quarters, (size_t)(n + 3) & ~(size_t)3);
    }
}

static void
decode_run(const ep_codec *c, float *restrict x, const unsigned char *wire, int64_t begin)
{
    size_t n = (size_t)run_at(c, begin);
    uint16_t halves[EP_RUN] = {0};
    uint8_t quarters[EP_RUN] = {0};
    if (c->code == EP_BF16) {
        memcpy(halves, wire + begin * 2, n * sizeof *halves);
        widen_bf16(x, halves);
        return;
    }
    float scale;
    memcpy(&scale, wire + begin / EP_RUN * 4, sizeof scale);
    memcpy(quarters, wire + scales_bytes(c) + begin, n);
    for (int i = 0; i < EP_RUN; i++) x[i] = c->values[quarters[i]] * scale;
}

static void
add_run(float *restrict sum, const float *restrict x)
{
    for (int i = 0; i < EP_RUN; i++) sum[i] += x[i];
}

void
mc_ep_set(const ep_codec *c, float *sum, const void *wire)
{
    if (c->code == EP_SAME) {
        memcpy(sum, wire, c->row_bytes);
        return;
    }
    for (int64_t begin = 0; begin < c->width; begin += EP_RUN) {
        float x[EP_RUN];
        int64_t n = run_at(c, begin);
        decode_run(c, n == EP_RUN ? sum + begin : x, wire, begin);
        if (n < EP_RUN) memcpy(sum + begin, x, (size_t)n * sizeof *x);
    }
}

void
mc_ep_add(const ep_codec *c, float *sum, const void *wire)
{
    for (int64_t begin = 0; begin < c->width; begin += EP_RUN) {
        float decoded[EP_RUN];
        const float *x = c->code == EP_SAME ? (const float *)wire + begin : decoded;
        int64_t n = run_at(c, begin);
        if (c->code != EP_SAME) decode_run(c, decoded, wire, begin);
        if (n == EP_RUN)
            add_run(sum + begin, x);
        else
            for (int64_t i = 0; i < n; i++) sum[begin + i] += x[i];
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
            encode(c, to + (size_t)i * c->wire_bytes,
                   (const float *)(const void *)(from + (size_t)(index ? index[i] : i) * c->row_bytes));
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
