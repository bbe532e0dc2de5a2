/* view: reading rows of tensors of a checkpoint. Data in a file may lie at any address, so elements are loaded with
 * memcpy; compilers make that one instruction. */
#include "runtime/view.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void
mc_dims_text(const int64_t *dims, int rank, char *out, size_t n_bytes)
{
    size_t len = (size_t)snprintf(out, n_bytes, "[");
    for (int i = 0; i < rank && len < n_bytes; i++)
        len += (size_t)snprintf(out + len, n_bytes - len, "%s%lld", i ? ", " : "", (long long)dims[i]);
    if (len < n_bytes) snprintf(out + len, n_bytes - len, "]");
}

static int64_t
rows_of(const int64_t *dims, int rank)
{
    int64_t n = 1;
    for (int i = 0; i + 1 < rank; i++) n *= dims[i];
    return n;
}

/* The offset of the first element of a row; with scale_offset also that of its block's first scale. */
static int64_t
row_offset(const mc_view *v, int64_t row, int64_t *scale_offset)
{
    int64_t offset = v->offset, scale = v->scale_offset;
    for (int i = v->rank - 2; i >= 0; i--) {
        int64_t index = row % v->dims[i];
        row /= v->dims[i];
        offset += index * v->strides[i];
        if (v->kind == MC_VIEW_FP8) scale += (i == v->rank - 2 ? index / v->block[0] : index) * v->scale_strides[i];
    }
    if (scale_offset) *scale_offset = scale;
    return offset;
}

static double
load(moec_dtype dtype, const unsigned char *data, int64_t index)
{
    union {
        unsigned char bytes[8];
        uint64_t align;
    } u;
    size_t n = moec_dtype_bytes(dtype);
    memcpy(u.bytes, data + (size_t)index * n, n);
    return mc_load_elem(dtype, u.bytes, 0);
}

static float
load_bf16(const unsigned char *data, int64_t index)
{
    uint16_t bits;
    memcpy(&bits, data + 2 * (size_t)index, 2);
    return mc_bf16_to_f32(bits);
}

static float
load_mxfp4(const mc_view *v, int64_t offset)
{
    static const float codes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    unsigned byte = v->data[offset / 2], code = offset & 1 ? byte >> 4 : byte & 15;
    float x = ldexpf(codes[code & 7], (int)v->scales[offset / 32] - 127);
    if (v->scales[offset / 32] == 0xFF) x = NAN;
    return code & 8 ? -x : x;
}

void
mc_view_row_f32(const mc_view *v, int64_t row, float *out)
{
    int64_t scale_offset, offset = row_offset(v, row, &scale_offset);
    int64_t n = v->rank ? v->dims[v->rank - 1] : 1, stride = v->rank ? v->strides[v->rank - 1] : 1;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = offset + i * stride;
        if (v->kind == MC_VIEW_MXFP4)
            out[i] = load_mxfp4(v, at);
        else if (v->dtype == MOEC_BF16)
            out[i] = load_bf16(v->data, at);
        else
            out[i] = (float)load(v->dtype, v->data, at);
    }
    for (int64_t begin = 0; v->kind == MC_VIEW_FP8 && begin < n; begin += v->block[1]) {
        float scale = (float)load(v->scale_dtype, v->scales, scale_offset);
        int64_t end = n - begin < v->block[1] ? n : begin + v->block[1];
        for (int64_t i = begin; i < end; i++) out[i] *= scale;
        scale_offset += v->scale_strides[v->rank - 1];
    }
    if (v->affine)
        for (int64_t i = 0; i < n; i++) out[i] = (float)(out[i] * v->mul + v->add);
}

bool
mc_view_is_contiguous(const mc_view *v)
{
    int64_t expect = 1;
    for (int i = v->rank - 1; i >= 0; i--) {
        if (v->dims[i] != 1 && v->strides[i] != expect) return false;
        expect *= v->dims[i];
    }
    return true;
}

static bool
row_is_raw(const mc_view *v)
{
    return v->kind == MC_VIEW_PLAIN && !v->affine;
}

static void
copy_row(const mc_view *v, int64_t row, unsigned char *out)
{
    int64_t offset = row_offset(v, row, NULL);
    int64_t n = v->rank ? v->dims[v->rank - 1] : 1, stride = v->rank ? v->strides[v->rank - 1] : 1;
    size_t size = moec_dtype_bytes(v->dtype);
    for (int64_t i = 0; i < n; i++)
        memcpy(out + (size_t)i * size, v->data + (size_t)(offset + i * stride) * size, size);
}

moec_status
mc_view_materialise(mc_view *v, bool dry, mc_fault *error)
{
    bool raw = row_is_raw(v);
    mc_view dense = {.kind = MC_VIEW_PLAIN, .dtype = raw ? v->dtype : MOEC_F32, .rank = v->rank};
    size_t size = moec_dtype_bytes(dense.dtype), total = size;
    int64_t stride = 1;
    for (int i = v->rank - 1; i >= 0; i--) {
        dense.dims[i] = v->dims[i];
        dense.strides[i] = stride;
        stride *= v->dims[i];
        if (__builtin_mul_overflow(total, (size_t)v->dims[i], &total))
            return mc_fail(error, MOEC_ERR_MEMORY, "a tensor is larger than memory");
    }
    if (!dry) {
        unsigned char *copy = malloc(total ? total : 1);
        if (!copy) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory (%zu bytes to rearrange a tensor)", total);
        int64_t n = v->rank ? v->dims[v->rank - 1] : 1;
        for (int64_t r = 0; total && r < rows_of(v->dims, v->rank); r++) {
            if (raw)
                copy_row(v, r, copy + (size_t)(r * n) * size);
            else
                mc_view_row_f32(v, r, (float *)(void *)copy + r * n);
        }
        dense.data = dense.owned = copy;
    }
    free(v->owned);
    *v = dense;
    return MOEC_OK;
}

/* ---- tensors -------------------------------------------------------------------------------------------------- */

int64_t
mc_tensor_rows(const mc_tensor *t)
{
    return rows_of(t->dims, t->rank);
}

int64_t
mc_tensor_row_elems(const mc_tensor *t)
{
    return t->rank ? t->dims[t->rank - 1] : 1;
}

moec_dtype
mc_tensor_dtype(const mc_tensor *t)
{
    return t->parts[0].dtype;
}

static const mc_view *
part_of(const mc_tensor *t, int64_t *row)
{
    if (!t->stacked) return &t->parts[0];
    int64_t rows = rows_of(t->parts[0].dims, t->parts[0].rank);
    const mc_view *v = &t->parts[*row / rows];
    *row %= rows;
    return v;
}

const unsigned char *
mc_tensor_row_raw(const mc_tensor *t, int64_t row)
{
    const mc_view *v = part_of(t, &row);
    if (!row_is_raw(v) || (v->rank && v->strides[v->rank - 1] != 1 && v->dims[v->rank - 1] != 1)) return NULL;
    return v->data + (size_t)row_offset(v, row, NULL) * moec_dtype_bytes(v->dtype);
}

void
mc_tensor_row_f32(const mc_tensor *t, int64_t row, float *out)
{
    const mc_view *v = part_of(t, &row);
    mc_view_row_f32(v, row, out);
}

void
mc_tensor_row_codes(const mc_tensor *t, int64_t row, uint8_t *out)
{
    const mc_view *v = part_of(t, &row);
    copy_row(v, row, out);
}

bool
mc_tensor_row_i32(const mc_tensor *t, int64_t row, int32_t *out)
{
    const mc_view *v = part_of(t, &row);
    int64_t offset = row_offset(v, row, NULL);
    int64_t n = v->rank ? v->dims[v->rank - 1] : 1, stride = v->rank ? v->strides[v->rank - 1] : 1;
    for (int64_t i = 0; i < n; i++) {
        double x = load(v->dtype, v->data, offset + i * stride); /* beyond 2^53 inexact, yet rightly out of range */
        if (!(x >= INT32_MIN && x <= INT32_MAX)) return false;
        out[i] = (int32_t)x;
    }
    return true;
}

float
mc_tensor_scale(const mc_tensor *t, int64_t group, int64_t block_row, int64_t block_column)
{
    const mc_view *v = &t->parts[0];
    int64_t groups = rows_of(v->dims, v->rank - 1);
    if (t->stacked) {
        v = &t->parts[group / groups];
        group %= groups;
    }
    int64_t offset = v->scale_offset;
    for (int i = v->rank - 3; i >= 0; i--) {
        offset += group % v->dims[i] * v->scale_strides[i];
        group /= v->dims[i];
    }
    offset += block_row * v->scale_strides[v->rank - 2] + block_column * v->scale_strides[v->rank - 1];
    return (float)load(v->scale_dtype, v->scales, offset);
}
