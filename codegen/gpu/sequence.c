/* Ops along positions: rope, position, cache, conv1d, the scans and top_keys. Sizes of heads and states are constants
 * of the kernels (kernels/rope.cuh, cache.cuh, scan.cuh, top_keys.cuh); batches and positions are their arguments. */
#include "codegen/gpu/attention.h"
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"
#include "ir/rope.h"
#include "runtime/base/hash.h"

enum { THREADS = 128, WIDE_THREADS = 256 };

static const char *
type_of(const mc_value *v)
{
    return mc_gpu_type(v->type->dtype);
}

static bool
all_f32(mc_plan *p, const mc_op *op)
{
    for (int i = 0; i < op->n_operands; i++)
        if (mc_operand(op, i)->type->dtype != MOEC_F32) return mc_plan_refuse(p, "an operand is not f32");
    return mc_result(op, 0)->type->dtype == MOEC_F32 || mc_plan_refuse(p, "its result is not f32");
}

/* ---- rope and position ------------------------------------------------------------------------------------------ */

/* The frequencies as a table of the kernel's own, and the last two arguments of the call. */
static mc_str
frequency_table(mc_plan *p, const mc_op *op, int64_t half, double *out_factor, uint64_t *out_hash)
{
    double *frequencies = MC_NEW_N(p->arena, double, half);
    mc_rope_frequencies(op, frequencies, out_factor);
    mc_str text = MC_STR("MC_CONSTANT f64 rope_frequencies[] = {");
    for (int64_t i = 0; i < half; i++)
        text = mc_strf(p->arena, "%.*s%s%.17g", MC_FMT(text), i ? ", " : "", frequencies[i]);
    *out_hash = mc_hash64(out_factor, sizeof *out_factor, mc_hash64(frequencies, (size_t)half * sizeof(double), 0));
    return mc_strf(p->arena, "%.*s};", MC_FMT(text));
}

void
mc_gpu_select_rope(mc_plan *p, const mc_op *op)
{
    enum { HEADS = 16 /* ROPE_HEADS */ };
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    int64_t width = mc_plan_need_const(p, mc_type_last(x->type), "the width of a head"), half = mc_rope_dims(op) / 2;
    bool adjacent = mc_attr_bool(op, "adjacent"), inverse = mc_attr_bool(op, "inverse");
    if (p->failed || !mc_gpu_need_floats(p, op)) return;
    int pairs = 4; /* of a thread */
    while (half % pairs || width % pairs) pairs /= 2;
    double factor;
    uint64_t hash;
    mc_gpu_code code = {.file = "rope.cuh", .threads = THREADS};
    code.prelude = frequency_table(p, op, half, &factor, &hash);
    mc_str form = mc_strf(p->arena, "%lld, %lld, %s, %s, %d, %s, %s", (long long)width, (long long)half,
                          adjacent ? "true" : "false", inverse ? "true" : "false", pairs, type_of(x), type_of(y));
    code.call = mc_strf(p->arena, "rope<%.*s>(a, rope_frequencies, f32(%.17g));", MC_FMT(form), factor);
    mc_gpu_grid(&code, 0, 0, 1);
    mc_gpu_grid(&code, 1, 2, HEADS);
    mc_plan_launch(p,
                   mc_gpu_kernel_get(p, &code, "rope_%lld_%lld_%d%d%d_%s_%s_%016llx", (long long)width, (long long)half,
                                     adjacent, inverse, pairs, type_of(x), type_of(y), (unsigned long long)hash));
    mc_gpu_value(p, x);
    mc_gpu_value(p, y);
    mc_gpu_int(p, mc_plan_product(p, x->type, 0, 2));
    mc_gpu_int(p, x->type->dims[1]);
    mc_gpu_int(p, x->type->dims[2]);
}

void
mc_gpu_select_position(mc_plan *p, const mc_op *op)
{
    const mc_value *y = mc_result(op, 0);
    mc_gpu_code code = {.file = "rope.cuh", .threads = THREADS};
    code.call = mc_strf(p->arena, "position<%s>(a);", type_of(y));
    mc_gpu_grid(&code, 0, 0, THREADS);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, y);
    mc_gpu_int(p, mc_plan_count(p, y->type));
    mc_gpu_int(p, y->type->dims[1]);
}

/* ---- memory across steps ---------------------------------------------------------------------------------------- */

void
mc_gpu_select_cache(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    mc_dim row = mc_plan_product(p, x->type, 2, x->type->rank);
    int64_t bytes = mc_plan_need_const(p, row, "a row of a cache") * (int64_t)moec_dtype_bytes(x->type->dtype);
    if (p->failed) return;
    int64_t unit = bytes % 16 == 0 ? 16 : bytes % 4 == 0 ? 4 : bytes % 2 == 0 ? 2 : 1;
    const char *type = unit == 16 ? "vec<u32, 4>" : unit == 4 ? "u32" : unit == 2 ? "u16" : "u8";
    bool copies = !mc_plan_in_state(y);
    mc_gpu_code code = {.file = "cache.cuh", .threads = WIDE_THREADS};
    code.call = mc_strf(p->arena, "cache%s<%s, %lld>(a);", copies ? "_copy" : "", type, (long long)(bytes / unit));
    mc_gpu_grid(&code, 0, 0, WIDE_THREADS);
    if (copies) { /* how much there is to copy is known on the device only */
        code.grid[0].add = 1024;
        code.per_sm = 4;
    }
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, x);
    mc_plan_ptr_state(p);
    if (copies) mc_gpu_value(p, y);
    mc_gpu_int(p, mc_plan_times(p, mc_plan_product(p, x->type, 0, 2), mc_dim_const(bytes / unit)));
    mc_gpu_int(p, x->type->dims[1]);
    if (copies) mc_gpu_int(p, x->type->dims[0]);
}

void
mc_gpu_select_conv1d(mc_plan *p, const mc_op *op)
{
    enum { MAX_TAPS = 16, SPAN = 32 /* CONV_SPAN */ };
    const mc_value *x = mc_operand(op, 0), *w = mc_operand(op, 1), *bias = mc_operand(op, 2), *y = mc_result(op, 0);
    int64_t taps = mc_plan_need_const(p, w->type->dims[2], "the width of a convolution");
    if (p->failed) return;
    if (taps > MAX_TAPS || w->type->dtype != MOEC_F32 || (bias && bias->type->dtype != MOEC_F32)) {
        mc_plan_refuse(p, "its weight must be in f32 and at most %d wide", (int)MAX_TAPS);
        return;
    }
    if (!mc_gpu_need_floats(p, op)) return;
    mc_gpu_code code = {.file = "cache.cuh", .threads = THREADS};
    code.call = mc_strf(p->arena, "conv1d<%lld, %s, %s>(a);", (long long)taps, type_of(x), type_of(y));
    mc_gpu_grid(&code, 0, 0, THREADS);
    mc_gpu_grid(&code, 1, 1, SPAN);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, x);
    mc_gpu_value(p, w);
    mc_gpu_value(p, bias);
    mc_plan_ptr_state(p);
    mc_gpu_value(p, y);
    mc_gpu_int(p, mc_plan_times(p, x->type->dims[0], x->type->dims[2]));
    mc_gpu_int(p, x->type->dims[1]);
    mc_gpu_int(p, x->type->dims[2]);
}

/* ---- scans ------------------------------------------------------------------------------------------------------ */

void
mc_gpu_select_selective_scan(mc_plan *p, const mc_op *op)
{
    enum { MAX_STATES = 256 };
    const mc_value *x = mc_operand(op, 0), *a = mc_operand(op, 2);
    int64_t n = mc_plan_need_const(p, a->type->dims[1], "the number of states"), lanes = 1;
    if (p->failed || !all_f32(p, op)) return;
    if (n > MAX_STATES) {
        mc_plan_refuse(p, "a channel has more than %d states", (int)MAX_STATES);
        return;
    }
    while (lanes < 32 && lanes < n) lanes *= 2;
    mc_gpu_code code = {.file = "scan.cuh", .threads = THREADS};
    code.call = mc_strf(p->arena, "selective_scan<%lld, %lld>(a);", (long long)n, (long long)lanes);
    mc_gpu_grid(&code, 0, 0, (uint32_t)(THREADS / lanes));
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    for (int i = 0; i < 5; i++) mc_gpu_value(p, mc_operand(op, i));
    mc_plan_ptr_state(p);
    mc_gpu_value(p, mc_result(op, 0));
    mc_gpu_int(p, mc_plan_times(p, x->type->dims[0], x->type->dims[2]));
    mc_gpu_int(p, x->type->dims[1]);
    mc_gpu_int(p, x->type->dims[2]);
}

void
mc_gpu_select_delta_scan(mc_plan *p, const mc_op *op)
{
    enum { COLUMNS = 16 /* DELTA_COLUMNS */, MAX_KEY = 256 };
    const mc_value *q = mc_operand(op, 0), *v = mc_operand(op, 2);
    int64_t dk = mc_plan_need_const(p, q->type->dims[3], "the width of a key");
    int64_t dv = mc_plan_need_const(p, v->type->dims[3], "the width of a value");
    if (p->failed || !all_f32(p, op)) return;
    if (dk > MAX_KEY) {
        mc_plan_refuse(p, "a key has more than %d channels", (int)MAX_KEY);
        return;
    }
    mc_gpu_code code = {.file = "scan.cuh", .threads = THREADS};
    code.call = mc_strf(p->arena, "delta_scan<%lld, %lld>(a);", (long long)dk, (long long)dv);
    mc_gpu_grid(&code, 0, 0, 1);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    for (int i = 0; i < 5; i++) mc_gpu_value(p, mc_operand(op, i));
    mc_plan_ptr_state(p);
    mc_gpu_value(p, mc_result(op, 0));
    mc_dim heads = mc_plan_times(p, q->type->dims[0], v->type->dims[2]);
    mc_gpu_int(p, mc_plan_times(p, heads, mc_dim_const((dv + COLUMNS - 1) / COLUMNS)));
    mc_gpu_int(p, q->type->dims[1]);
    mc_gpu_int(p, v->type->dims[2]);
    mc_gpu_int(p, q->type->dims[2]);
    mc_plan_float(p, mc_attr_float(op, "scale"));
}

/* ---- top_keys --------------------------------------------------------------------------------------------------- */

/* key_search of top_keys.cuh, in bytes. */
static int64_t
search_bytes(int64_t width, int64_t n)
{
    enum { TILE = 64, HEADS = 16, THREADS_OF_IT = 256 };
    int64_t ws = ((width + 3) / 4 | 1) * 4, room = n + (n > THREADS_OF_IT ? n : THREADS_OF_IT);
    return 4 * (TILE * ws + HEADS * ws + TILE * HEADS + 2 * room);
}

static void
launch_search(mc_plan *p, const mc_op *op, mc_gpu_code *code, const char *function, int64_t width, int64_t heads)
{
    const mc_value *q = mc_operand(op, 0), *k = mc_operand(op, 1);
    code->call = mc_strf(p->arena, "%s<%lld, %lld, %lld>(a);", function, (long long)width, (long long)heads,
                         (long long)mc_attr_int(op, "n"));
    mc_plan_launch(p, mc_gpu_kernel_of(p, code));
    for (int i = 0; i < 3; i++) mc_gpu_value(p, mc_operand(op, i));
    mc_gpu_value(p, mc_result(op, 0));
    mc_gpu_int(p, mc_plan_product(p, q->type, 0, 2));
    mc_gpu_int(p, q->type->dims[1]);
    mc_gpu_history(p, k->type->dims[1]);
    mc_plan_const(p, mc_plan_in_state(k));
}

void
mc_gpu_select_top_keys(mc_plan *p, const mc_op *op)
{
    enum { PARTS = 256 /* KEYS_PARTS */, SHARED_MOST = 98 * 1024 };
    const mc_value *q = mc_operand(op, 0);
    int64_t width = mc_plan_need_const(p, q->type->dims[3], "the width of a head"), n = mc_attr_int(op, "n");
    int64_t heads = mc_plan_need_const(p, q->type->dims[2], "the number of heads");
    for (int i = 0; i < 3; i++)
        if (mc_operand(op, i)->type->dtype != MOEC_F32) mc_plan_refuse(p, "an operand is not f32");
    if (p->failed) return;
    if (n > SHARED_MOST / 16 || width > SHARED_MOST / 320 || search_bytes(width, n) > SHARED_MOST) {
        mc_plan_refuse(p, "%lld keys of %lld channels do not fit into shared memory", (long long)n, (long long)width);
        return;
    }
    mc_gpu_code code = {.file = "top_keys.cuh", .threads = WIDE_THREADS, .blocks = 2};
    code.shared = (uint32_t)search_bytes(width, n);
    code.grid[0] = (moec_abi_grid_axis){.from = 0, .div = 1, .add = PARTS};
    mc_gpu_code join = code;
    launch_search(p, op, &code, "top_keys", width, heads);
    mc_gpu_grid(&join, 0, 0, 1);
    join.per_sm = 2;
    launch_search(p, op, &join, "top_keys_join", width, heads);
    mc_plan_scratch_dim(p, mc_dim_const(PARTS * (2 * n + 1) * 4));
}
