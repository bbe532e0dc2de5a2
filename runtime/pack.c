/* pack: see pack.h. A panel is made from nr rows: each row is brought to the stored type (or borrowed from the mapped
 * file when it has that type already), then the nr rows are transposed into [K][nr]. */
#include "runtime/pack.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NR = 256 };

/* ---- sizes ---------------------------------------------------------------------------------------------------- */

static int64_t
ceil_div(int64_t a, int64_t b)
{
    return a / b + (a % b != 0);
}

/* groups x n x k of one source tensor. A vector is one row. */
static bool
extents(const moec_abi_weight *w, int64_t *groups, int64_t *n, int64_t *k)
{
    int64_t total = 1;
    *groups = *n = *k = 1;
    if (w->rank > 4) return false;
    for (uint32_t i = 0; i < w->rank; i++) {
        if (w->dims[i] <= 0 || __builtin_mul_overflow(total, w->dims[i], &total) || total > INT64_MAX / 64)
            return false;
        if (i + 2 < w->rank) *groups *= w->dims[i];
    }
    if (w->rank >= 1) *k = w->dims[w->rank - 1];
    if (w->rank >= 2) *n = w->dims[w->rank - 2];
    return true;
}

static int64_t
columns_per_panel(const moec_abi_weight *w)
{
    return w->layout == MOEC_ABI_PAIR_PANELS ? w->nr / 2 : w->nr;
}

bool
mc_packed_bytes(const moec_abi_weight *w, uint64_t *out)
{
    int64_t groups, n, k, elems;
    size_t size = moec_dtype_bytes((moec_dtype)w->dtype);
    if (!w->path || !w->role || !size || !extents(w, &groups, &n, &k)) return false;
    if (w->layout == MOEC_ABI_ROWS) {
        *out = (uint64_t)(groups * n * k) * size;
        return !w->path2;
    }
    if (w->layout > MOEC_ABI_PAIR_PANELS || w->nr == 0 || w->nr > MAX_NR || w->rank < 2 || w->scale_of) return false;
    bool pair = w->layout == MOEC_ABI_PAIR_PANELS;
    if (pair != (w->path2 != NULL) || (pair && w->nr % 2)) return false;
    if (__builtin_mul_overflow(groups * ceil_div(n, columns_per_panel(w)), k * w->nr, &elems)) return false;
    return !__builtin_mul_overflow((uint64_t)elems, size, out);
}

/* ---- FP8 scales ----------------------------------------------------------------------------------------------- */

/* One scale for each block, [groups][ceil(n / o)][ceil(k / i)]: the checkpoint's, or amax / 448 so that the greatest
 * magnitude becomes the greatest finite code. A block of zeros gets 1. */
static moec_status
make_scales(const mc_tensor *t, const int64_t *block, float **out, mc_fault *error)
{
    int64_t rank = t->rank, n = t->dims[rank - 2], k = t->dims[rank - 1];
    int64_t groups = mc_tensor_rows(t) / n, rows = ceil_div(n, block[0]), columns = ceil_div(k, block[1]);
    float *scales = calloc((size_t)(groups * rows * columns), sizeof *scales);
    float *row = malloc((size_t)k * sizeof *row);
    *out = scales;
    if (!scales || !row) {
        free(row);
        return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    }
    bool ready = t->parts[0].kind == MC_VIEW_FP8;
    for (int64_t r = 0; r < groups * n && !ready; r++) {
        float *s = scales + (r / n * rows + r % n / block[0]) * columns;
        mc_tensor_row_f32(t, r, row);
        for (int64_t i = 0; i < k; i++) s[i / block[1]] = fmaxf(s[i / block[1]], fabsf(row[i]));
    }
    for (int64_t i = 0; i < groups * rows * columns; i++) {
        if (ready)
            scales[i] = mc_tensor_scale(t, i / (rows * columns), i / columns % rows, i % columns);
        else
            scales[i] = scales[i] > 0 && scales[i] < INFINITY ? scales[i] / 448.0f : 1.0f;
    }
    free(row);
    return MOEC_OK;
}

/* ---- opening -------------------------------------------------------------------------------------------------- */

static moec_status
open_scales(mc_packer *p, mc_fault *error)
{
    const moec_abi_weight *w = p->weight;
    const mc_bound *bound = mc_bind_find(p->bind, w->scale_of);
    int64_t groups, n, k;
    if (!bound || w->block[0] <= 0 || w->block[1] <= 0 || w->dtype != MOEC_F32 ||
        !extents(bound->weight, &groups, &n, &k) || p->groups != groups || p->n != ceil_div(n, w->block[0]) ||
        p->k != ceil_div(k, w->block[1]))
        return mc_fail(error, MOEC_ERR_INTERNAL, "the artefact's scales %s do not fit %s", w->path, w->scale_of);
    moec_status s = mc_bind_open(p->bind, bound, &p->tensors[0], error);
    if (s != MOEC_OK) return s;
    p->n_tensors = 1;
    p->n_units = 1;
    p->unit_bytes = (uint64_t)(p->groups * p->n * p->k) * sizeof(float);
    return make_scales(&p->tensors[0], w->block, &p->scales[0], error);
}

static moec_status
open_tensor(mc_packer *p, const char *path, mc_fault *error)
{
    int i = p->n_tensors;
    const mc_bound *bound = mc_bind_find(p->bind, path);
    if (!bound) return mc_fail(error, MOEC_ERR_INTERNAL, "weight %s was not bound", path);
    moec_status s = mc_bind_open(p->bind, bound, &p->tensors[i], error);
    if (s != MOEC_OK) return s;
    p->n_tensors = i + 1;
    if (p->weight->dtype != MOEC_F8E4M3 || p->tensors[i].parts[0].kind == MC_VIEW_FP8) return MOEC_OK;
    const moec_abi_weight *scale = mc_scale_entry(p->bind->abi, path);
    if (!scale) return mc_fail(error, MOEC_ERR_INTERNAL, "the artefact has no scales for FP8 weight %s", path);
    memcpy(p->block, scale->block, sizeof p->block);
    return make_scales(&p->tensors[i], p->block, &p->scales[i], error);
}

moec_status
mc_packer_open(mc_packer *p, const mc_bind *bind, uint32_t weight, mc_fault *error)
{
    const moec_abi_weight *w = &bind->abi->weights[weight];
    *p = (mc_packer){.weight = w, .bind = bind};
    uint64_t total;
    if (!mc_packed_bytes(w, &total) || !extents(w, &p->groups, &p->n, &p->k))
        return mc_fail(error, MOEC_ERR_INTERNAL, "weight %u has a malformed layout", weight);
    moec_status s;
    if (w->scale_of) {
        s = open_scales(p, error);
    } else {
        s = open_tensor(p, w->path, error);
        if (s == MOEC_OK && w->path2) s = open_tensor(p, w->path2, error);
        p->n_units = w->layout == MOEC_ABI_ROWS ? (uint64_t)(p->groups * p->n)
                                                : (uint64_t)(p->groups * ceil_div(p->n, columns_per_panel(w)));
        p->unit_bytes = total / p->n_units;
    }
    if (s != MOEC_OK) mc_packer_close(p);
    return s;
}

void
mc_packer_close(mc_packer *p)
{
    for (int i = 0; i < p->n_tensors; i++) mc_tensor_close(&p->tensors[i]);
    free(p->scales[0]);
    free(p->scales[1]);
    *p = (mc_packer){0};
}

/* ---- rows and panels ------------------------------------------------------------------------------------------ */

typedef struct fill {
    mc_packer *packer;
    uint64_t first, n;
    unsigned char *out;
    size_t room; /* bytes of scratch for each thread */
    unsigned char *scratch;
    atomic_int bad; /* a value that does not fit its type */
} fill;

/* The row's values narrowed from f32; to FP8 by the scales of its blocks. */
static void
convert_row(const mc_packer *p, int which, int64_t row, const float *values, void *out)
{
    moec_dtype dtype = (moec_dtype)p->weight->dtype;
    if (dtype == MOEC_F8E4M3) {
        int64_t rows = ceil_div(p->n, p->block[0]), columns = ceil_div(p->k, p->block[1]);
        const float *s = p->scales[which] + (row / p->n * rows + row % p->n / p->block[0]) * columns;
        for (int64_t i = 0; i < p->k; i++) ((uint8_t *)out)[i] = mc_f32_to_f8e4m3(values[i] / s[i / p->block[1]]);
    } else if (dtype == MOEC_BF16) {
        for (int64_t i = 0; i < p->k; i++) ((uint16_t *)out)[i] = mc_f32_to_bf16(values[i]);
    } else {
        for (int64_t i = 0; i < p->k; i++) mc_store_elem(dtype, out, (size_t)i, values[i]);
    }
}

/* Row `row` of tensor `which` in the stored type: in the mapped file, or made at `room` (k stored elements, then k
 * floats). */
static const unsigned char *
stored_row(fill *f, int which, int64_t row, unsigned char *room)
{
    const mc_packer *p = f->packer;
    const mc_tensor *t = &p->tensors[which];
    moec_dtype dtype = (moec_dtype)p->weight->dtype;
    if (mc_tensor_dtype(t) == dtype) {
        const unsigned char *raw = mc_tensor_row_raw(t, row);
        if (raw) return raw;
    }
    if (dtype == MOEC_F8E4M3 && t->parts[0].kind == MC_VIEW_FP8) {
        mc_tensor_row_codes(t, row, room);
        return room;
    }
    if (!mc_dtype_is_float(dtype)) {
        if (!mc_tensor_row_i32(t, row, (int32_t *)(void *)room)) atomic_store(&f->bad, 1);
        return room;
    }
    size_t stored = ((size_t)p->k * moec_dtype_bytes(dtype) + 7) / 8 * 8;
    float *values = dtype == MOEC_F32 ? (float *)(void *)room : (float *)(void *)(room + stored);
    mc_tensor_row_f32(t, row, values);
    if (dtype != MOEC_F32) convert_row(p, which, row, values, room);
    return room;
}

/* out[k][j] = rows[j][k]; NULL rows are zeros. */
#define TRANSPOSE(T)                                                                                                   \
    for (int64_t i = 0; i < k; i++)                                                                                    \
        for (uint32_t j = 0; j < nr; j++) {                                                                            \
            T x = 0;                                                                                                   \
            if (rows[j]) memcpy(&x, rows[j] + (size_t)i * sizeof x, sizeof x);                                         \
            memcpy(out + ((size_t)i * nr + j) * sizeof x, &x, sizeof x);                                               \
        }

static void
transpose_panel(const unsigned char *const *rows, int64_t k, uint32_t nr, size_t size, unsigned char *out)
{
    switch (size) {
    case 1: TRANSPOSE(uint8_t) break;
    case 2: TRANSPOSE(uint16_t) break;
    case 4: TRANSPOSE(uint32_t) break;
    default: TRANSPOSE(uint64_t) break;
    }
}

/* Panel `unit`: columns of one tensor, or nr/2 of gate and then the same nr/2 of up. */
static void
make_panel(fill *f, uint64_t unit, unsigned char *room, unsigned char *out)
{
    const mc_packer *p = f->packer;
    const moec_abi_weight *w = p->weight;
    const unsigned char *rows[MAX_NR];
    int64_t wide = columns_per_panel(w), per_group = ceil_div(p->n, wide);
    int64_t group = (int64_t)unit / per_group, first = (int64_t)unit % per_group * wide;
    size_t row_room = f->room / w->nr;
    for (uint32_t j = 0; j < w->nr; j++) {
        int64_t row = first + j % wide;
        rows[j] = row < p->n ? stored_row(f, (int)(j / wide), group * p->n + row, room + j * row_room) : NULL;
    }
    transpose_panel(rows, p->k, w->nr, moec_dtype_bytes((moec_dtype)w->dtype), out);
}

static void
fill_thread(void *context, uint32_t thread, uint32_t n_threads)
{
    fill *f = context;
    mc_packer *p = f->packer;
    uint64_t begin = f->n * thread / n_threads, end = f->n * (thread + 1) / n_threads;
    unsigned char *room = f->scratch + thread * f->room;
    for (uint64_t u = begin; u < end; u++) {
        unsigned char *out = f->out + u * p->unit_bytes;
        if (p->weight->scale_of)
            memcpy(out, p->scales[0], p->unit_bytes);
        else if (p->weight->layout == MOEC_ABI_ROWS)
            memcpy(out, stored_row(f, 0, (int64_t)(f->first + u), room), p->unit_bytes);
        else
            make_panel(f, f->first + u, room, out);
    }
}

moec_status
mc_packer_fill(mc_packer *p, mc_pool *pool, uint64_t first, uint64_t n, unsigned char *out, mc_fault *error)
{
    fill f = {.packer = p, .first = first, .n = n, .out = out};
    uint32_t rows = p->weight->layout == MOEC_ABI_ROWS ? 1 : p->weight->nr;
    f.room = (((size_t)p->k * (sizeof(float) + 8) + 64) / 8 * 8) * rows;
    size_t total;
    if (__builtin_mul_overflow(f.room, (size_t)mc_pool_n_threads(pool), &total) || !(f.scratch = malloc(total)))
        return mc_fail(error, MOEC_ERR_MEMORY, "out of memory (to pack %s)", p->weight->path);
    mc_pool_run(pool, fill_thread, &f);
    free(f.scratch);
    if (!atomic_load(&f.bad)) return MOEC_OK;
    return mc_fail(error, MOEC_ERR_MISMATCH, "E0903: %s holds an integer that does not fit %s", p->weight->path,
                   moec_dtype_name((moec_dtype)p->weight->dtype));
}
