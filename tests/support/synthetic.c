/* Noise is a hash of (stream, index): no state, so elements can be made in any order. A normal is the sum of four
 * uniforms (variance 1/3), scaled; that needs no libm and is the same bits everywhere. */
#include "tests/support/synthetic.h"

#include "runtime/base/dtype.h"
#include "runtime/base/hash.h"

#include <math.h>

static uint64_t
mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

double
mc_noise_uniform(uint64_t hash, int64_t i)
{
    return (double)(mix(hash ^ mix((uint64_t)i)) >> 11) * 0x1p-53;
}

double
mc_noise_normal(uint64_t hash, int64_t i)
{
    double sum = 0;
    for (int64_t j = 0; j < 4; j++) sum += mc_noise_uniform(hash, i * 4 + j);
    return (sum - 2) * 1.75; /* 1.75 for sqrt 3: short, and near enough */
}

void
mc_synthetic_init(mc_synthetic *s, mc_arena *arena, uint64_t seed)
{
    *s = (mc_synthetic){.arena = arena, .seed = seed, .int_limit = 2};
    mc_map_init(&s->made, arena);
}

static bool
contains(mc_str s, mc_str part)
{
    for (size_t i = 0; i + part.len <= s.len; i++)
        if (mc_str_eq(mc_str_slice(s, i, i + part.len), part)) return true;
    return false;
}

static double
element(const mc_synthetic *s, const mc_ref_weight_request *r, uint64_t hash, int64_t i)
{
    if (!mc_dtype_is_float(r->dtype)) return floor(mc_noise_uniform(hash, i) * (double)s->int_limit);
    if (contains(r->path, MC_STR("scale"))) return 0.5 + mc_noise_uniform(hash, i);
    double n = mc_noise_normal(hash, i);
    if (mc_str_is(r->role, "norm") || contains(r->path, MC_STR("norm"))) return 1 + 0.1 * n;
    if (mc_str_is(r->role, "embed")) return n;
    return r->rank < 2 ? 0.1 * n : n / sqrt((double)r->dims[r->rank - 1]);
}

static mc_ref_tensor *
make(mc_synthetic *s, const mc_ref_weight_request *r)
{
    mc_ref_tensor *t = MC_NEW(s->arena, mc_ref_tensor);
    if (!mc_ref_tensor_init(t, r->dtype, r->dims, r->rank, s->arena)) return NULL;
    uint64_t hash = mc_hash64(r->path.data, r->path.len, s->seed);
    for (int64_t i = 0; i < t->n; i++) {
        double x = (float)element(s, r, hash, i);
        if (s->bf16_grid) x = mc_bf16_to_f32(mc_f32_to_bf16((float)x));
        mc_ref_tensor_set(t, i, x);
    }
    return t;
}

bool
mc_ref_synthetic_weight(void *user, const mc_ref_weight_request *r, mc_ref_tensor *out)
{
    mc_synthetic *s = user;
    mc_buf key = {0};
    mc_buf_printf(&key, "%.*s %s", MC_FMT(r->path), moec_dtype_name(r->dtype));
    mc_ref_tensor *t = mc_map_get(&s->made, mc_buf_view(&key));
    if (!t) {
        t = make(s, r);
        if (t) mc_map_set(&s->made, mc_str_dup(s->arena, mc_buf_view(&key)), t);
    }
    mc_buf_fini(&key);
    if (!t) return false;
    *out = *t;
    return true;
}
