/* Tensors of the interpreter: plain row-major arrays, and the few questions that many kernels ask of them. */
#include "codegen/ref/num.h"

static const int64_t max_tensor_bytes = INT64_C(1) << 34;

bool
mc_ref_tensor_init(mc_ref_tensor *t, moec_dtype dtype, const int64_t *dims, int rank, mc_arena *arena)
{
    int64_t n = 1, n_bytes;
    if (rank < 0 || rank > MC_MAX_RANK) return false;
    for (int i = 0; i < rank; i++)
        if (dims[i] < 0 || __builtin_mul_overflow(n, dims[i], &n)) return false;
    if (__builtin_mul_overflow(n, (int64_t)moec_dtype_bytes(dtype), &n_bytes) || n_bytes > max_tensor_bytes)
        return false;
    mc_ref_tensor made = {.dtype = dtype, .rank = rank, .n = n};
    for (int i = 0; i < rank; i++) made.dims[i] = dims[i];
    if (arena) made.data = mc_arena_alloc(arena, (size_t)n_bytes);
    *t = made;
    return true;
}

double
mc_ref_tensor_get(const mc_ref_tensor *t, int64_t i)
{
    return mc_load_elem(t->dtype, t->data, (size_t)i);
}

static double
saturate(double x, double lo, double hi)
{
    return isnan(x) ? 0 : x < lo ? lo : x > hi ? hi : x;
}

void
mc_ref_tensor_set(mc_ref_tensor *t, int64_t i, double value)
{
    switch (t->dtype) {
    case MOEC_I32: value = saturate(value, INT32_MIN, INT32_MAX); break;
    case MOEC_I64: value = saturate(value, -0x1p63, 0x1p63 - 1024); break;
    case MOEC_I8: value = saturate(value, INT8_MIN, INT8_MAX); break;
    case MOEC_U8: value = saturate(value, 0, UINT8_MAX); break;
    case MOEC_BOOL: value = value != 0; break;
    default: break;
    }
    mc_store_elem(t->dtype, t->data, (size_t)i, value);
}

int64_t
mc_ref_last(const mc_ref_tensor *t)
{
    return t->rank ? t->dims[t->rank - 1] : 1;
}

int64_t
mc_ref_rows(const mc_ref_tensor *t)
{
    int64_t rows = 1;
    for (int i = 0; i + 1 < t->rank; i++) rows *= t->dims[i];
    return rows;
}

mc_ref_tensor
mc_ref_slice0(const mc_ref_tensor *t, int64_t i)
{
    mc_ref_tensor s = {.dtype = t->dtype, .rank = t->rank - 1, .n = 1};
    for (int d = 0; d < s.rank; d++) {
        s.dims[d] = t->dims[d + 1];
        s.n *= s.dims[d];
    }
    s.data = (char *)t->data + (size_t)(i * s.n) * moec_dtype_bytes(t->dtype);
    return s;
}

bool
mc_ref_before(double a, int64_t i, double b, int64_t j)
{
    if (isnan(a) != isnan(b)) return isnan(a);
    if (a > b || a < b) return a > b;
    return i < j;
}

void
mc_ref_best(const double *keys, int64_t count, int64_t n, int64_t *out, mc_arena *arena)
{
    bool *taken = MC_NEW_N(arena, bool, count);
    for (int64_t j = 0; j < n; j++) {
        int64_t best = -1;
        for (int64_t i = 0; i < count; i++)
            if (!taken[i] && (best < 0 || mc_ref_before(keys[i], i, keys[best], best))) best = i;
        taken[best] = true;
        out[j] = best;
    }
}
