/* Rows to experts: moe.dispatch, moe.capacity, moe.permute, moe.identity. The one idea: choices are sorted by one
 * launch where they fit into one block and by three where not; which, follows from the grids of the last two, whose
 * third axis is empty up to that size (kernels/sort.cuh). */
#include "codegen/gpu/combine.h"
#include "codegen/gpu/rows.h"
#include "codegen/gpu/sort.h"

enum { ROW_THREADS = 128, PIECES = 4, TAKE_THREADS = 256, LAST_THREADS = 512 }; /* of permute.cuh, choose.cuh */

static bool
need(mc_plan *p, const mc_value *v, moec_dtype dtype)
{
    if (!v || v->type->dtype == dtype) return true;
    return mc_plan_refuse(p, "an operand is %s, not %s", moec_dtype_name(v->type->dtype), moec_dtype_name(dtype));
}

/* ---- sorting --------------------------------------------------------------------------------------------------- */

bool
mc_gpu_sort_experts(mc_plan *p, int64_t experts)
{
    if (experts <= MC_GPU_SORT_EXPERTS) return true;
    return mc_plan_refuse(p, "choices of more than %d experts", (int)MC_GPU_SORT_EXPERTS);
}

mc_gpu_code
mc_gpu_sort_code(const char *file, mc_str call, int64_t experts, mc_gpu_sort_step step)
{
    mc_gpu_code code = {.file = file, .call = call, .threads = experts <= 1024 ? 256 : 64};
    code.blocks = 2; /* more would spill */
    if (step == MC_GPU_SORT_SUMS) {
        code.threads = 1024;
        code.blocks = 0;
        mc_gpu_grid(&code, 0, 2, 32);
    } else {
        mc_gpu_grid(&code, 0, 0, MC_GPU_SORT_CHUNK);
    }
    if (step == MC_GPU_SORT_FIRST)
        code.grid[0].add = 1;
    else
        mc_gpu_grid(&code, 2, 1, 1u << 30); /* nothing up to one chunk */
    mc_gpu_grid(&code, 1, 3, 1);
    return code;
}

void
mc_gpu_sort_sizes(mc_plan *p, mc_dim n, int64_t experts, int64_t groups)
{
    mc_gpu_int(p, n);
    mc_gpu_int(p, mc_gpu_plus(n, -MC_GPU_SORT_CHUNK));
    mc_plan_const(p, experts);
    mc_plan_const(p, groups);
}

/* The second launch. */
static void
sum_counts(mc_plan *p, mc_dim n, int64_t experts, int64_t groups)
{
    mc_str call = mc_strf(p->arena, "dispatch_sums<%lld>(a);", (long long)experts);
    mc_gpu_code code = mc_gpu_sort_code("dispatch.cuh", call, experts, MC_GPU_SORT_SUMS);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_sort_sizes(p, n, experts, groups);
}

/* Counts of every chunk, of the earlier ones in it, and sums: at most n / CHUNK + 2 times E for each group; `more`
 * bytes for each of the n elements, and `least` besides. */
static void
need_scratch(mc_plan *p, mc_dim n, int64_t experts, int64_t groups, int64_t more, int64_t least)
{
    int64_t each = (experts * groups * 4 + MC_GPU_SORT_CHUNK - 1) / MC_GPU_SORT_CHUNK + more;
    mc_plan_scratch_dim(p, mc_gpu_plus(mc_plan_times(p, n, mc_dim_const(each)), experts * groups * 8 + least));
}

/* ---- dispatch -------------------------------------------------------------------------------------------------- */

static void
launch_dispatch(mc_plan *p, const mc_op *op, mc_gpu_sort_step step, const uint32_t *inverse)
{
    const mc_value *ids = mc_operand(op, 1);
    int64_t experts = mc_attr_int(op, "experts");
    int64_t k = mc_plan_need_const(p, mc_type_last(ids->type), "the number of choices of a token");
    mc_str call = mc_strf(p->arena, "dispatch_%s<%lld, %lld>(a);", step == MC_GPU_SORT_FIRST ? "first" : "last",
                          (long long)experts, (long long)(k > 1 ? k : 1));
    mc_gpu_code code = mc_gpu_sort_code("dispatch.cuh", call, experts, step);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, mc_operand(op, 0));
    mc_gpu_value(p, ids);
    mc_gpu_value(p, mc_result(op, 0));
    for (int i = 1; i < 4; i++) mc_gpu_value(p, mc_value_has_uses(mc_result(op, i)) ? mc_result(op, i) : NULL);
    if (inverse)
        mc_plan_ptr_slot(p, *inverse);
    else
        mc_gpu_value(p, NULL);
    mc_gpu_sort_sizes(p, mc_plan_count(p, ids->type), experts, 1);
}

void
mc_gpu_select_dispatch(mc_plan *p, const mc_op *op)
{
    const mc_value *weights = mc_operand(op, 0), *ids = mc_operand(op, 1);
    int64_t experts = mc_attr_int(op, "experts");
    if (!need(p, weights, MOEC_F32) || !need(p, ids, MOEC_I32) || !mc_gpu_sort_experts(p, experts)) return;
    mc_dim n = mc_plan_count(p, ids->type);
    uint32_t slot, *inverse = mc_gpu_combine_keep(p, op, &slot) ? &slot : NULL;
    need_scratch(p, n, experts, 1, 0, 0);
    launch_dispatch(p, op, MC_GPU_SORT_FIRST, inverse);
    sum_counts(p, n, experts, 1);
    launch_dispatch(p, op, MC_GPU_SORT_LAST, inverse);
}

/* ---- capacity -------------------------------------------------------------------------------------------------- */

typedef struct capacity {
    const mc_op *op;
    mc_dim n; /* of a group */
    int64_t experts, groups;
} capacity;

static mc_str
capacity_call(mc_plan *p, const capacity *c, const char *name)
{
    return mc_strf(p->arena, "%s<%lld, %lld>(a);", name, (long long)c->experts, (long long)c->groups);
}

static void
launch_capacity(mc_plan *p, const capacity *c, const mc_gpu_code *code)
{
    const mc_value *ids = mc_operand(c->op, 1);
    mc_plan_launch(p, mc_gpu_kernel_of(p, code));
    mc_gpu_value(p, mc_operand(c->op, 0));
    mc_gpu_value(p, ids);
    mc_gpu_value(p, mc_result(c->op, 0));
    mc_gpu_value(p, mc_result(c->op, 1));
    mc_gpu_sort_sizes(p, c->n, c->experts, c->groups);
    mc_gpu_int(p, mc_plan_rows(p, ids->type));
    mc_gpu_int(p, mc_type_last(ids->type));
    mc_gpu_int(p, mc_plan_count(p, ids->type));
    mc_plan_float(p, mc_attr_float(c->op, "factor"));
}

static void
launch_step(mc_plan *p, const capacity *c, const char *file, const char *name, mc_gpu_sort_step step)
{
    mc_gpu_code code = mc_gpu_sort_code(file, capacity_call(p, c, name), c->experts, step);
    launch_capacity(p, c, &code);
}

/* Rows of every expert first, then the last that each keeps, then element by element. */
static void
keep_best(mc_plan *p, const capacity *c)
{
    need_scratch(p, c->n, c->experts, c->groups, 4 * c->groups, (c->experts + 1) * c->groups * 12 + 8);
    launch_step(p, c, "choose.cuh", "score_first", MC_GPU_SORT_FIRST);
    sum_counts(p, c->n, c->experts, c->groups);
    launch_step(p, c, "choose.cuh", "score_rows", MC_GPU_SORT_LAST);
    mc_gpu_code last = {.file = "choose.cuh", .call = capacity_call(p, c, "score_last"), .threads = LAST_THREADS};
    mc_gpu_grid(&last, 0, 2, 1);
    mc_gpu_grid(&last, 1, 3, 1);
    launch_capacity(p, c, &last);
    mc_gpu_code take = {.file = "choose.cuh", .call = capacity_call(p, c, "score_take"), .threads = TAKE_THREADS};
    mc_gpu_grid(&take, 0, 6, TAKE_THREADS);
    launch_capacity(p, c, &take);
}

void
mc_gpu_select_capacity(mc_plan *p, const mc_op *op)
{
    const mc_value *weights = mc_operand(op, 0), *ids = mc_operand(op, 1);
    capacity c = {.op = op, .experts = mc_attr_int(op, "experts"), .groups = 1};
    if (!need(p, weights, MOEC_F32) || !need(p, ids, MOEC_I32) || !mc_gpu_sort_experts(p, c.experts)) return;
    c.n = mc_plan_count(p, ids->type);
    if (mc_str_is(mc_attr_str(op, "per"), "slot")) {
        c.n = mc_plan_rows(p, ids->type);
        c.groups = mc_plan_need_const(p, mc_type_last(ids->type), "the number of choices of a token");
        if (c.groups < 1) c.groups = 1;
    }
    if (mc_str_is(mc_attr_str(op, "drop"), "score")) {
        keep_best(p, &c);
        return;
    }
    need_scratch(p, c.n, c.experts, c.groups, 0, 0);
    launch_step(p, &c, "dispatch.cuh", "capacity_first", MC_GPU_SORT_FIRST);
    sum_counts(p, c.n, c.experts, c.groups);
    launch_step(p, &c, "dispatch.cuh", "capacity_last", MC_GPU_SORT_LAST);
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

/* A launch of function<X, Y, V...> with a block for `rows` rows of d elements, i[0] and i[1]. */
static void
launch_rows(mc_plan *p, const mc_value *x, const mc_value *y, const char *function, const char *more)
{
    size_t from = moec_dtype_bytes(x->type->dtype), to = moec_dtype_bytes(y->type->dtype);
    uint32_t width = mc_gpu_width(mc_type_last(x->type), from < to ? from : to);
    mc_gpu_code code = {.file = "permute.cuh", .threads = ROW_THREADS};
    code.call = mc_strf(p->arena, "%s<%s, %s, %u%s>(a);", function, mc_gpu_type(x->type->dtype),
                        mc_gpu_type(y->type->dtype), width, more);
    mc_gpu_grid(&code, 0, 0, 1);
    mc_gpu_grid(&code, 1, 1, ROW_THREADS * PIECES * width);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
}

static bool
need_float_rows(mc_plan *p, const mc_value *x, const mc_value *y)
{
    if (mc_gpu_is_float(x->type->dtype) && mc_gpu_is_float(y->type->dtype)) return true;
    return mc_plan_refuse(p, "its rows must be f32, bf16 or f16");
}

void
mc_gpu_select_permute(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *rows = mc_operand(op, 1), *offsets = mc_operand(op, 2);
    const mc_value *gates = mc_operand(op, 3), *y = mc_result(op, 0);
    if (!need_float_rows(p, x, y) || !need(p, rows, MOEC_I32) || !need(p, offsets, MOEC_I32) ||
        !need(p, gates, MOEC_F32))
        return;
    launch_rows(p, x, y, "permute", gates ? ", true" : ", false");
    mc_gpu_value(p, x);
    mc_gpu_value(p, rows);
    mc_gpu_value(p, offsets);
    mc_gpu_value(p, gates);
    mc_gpu_value(p, y);
    mc_gpu_int(p, rows->type->dims[0]);
    mc_gpu_int(p, mc_type_last(x->type));
    mc_plan_const(p, mc_plan_need_const(p, offsets->type->dims[0], "the number of experts") - 1);
}

void
mc_gpu_select_identity(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *weights = mc_operand(op, 1), *ids = mc_operand(op, 2);
    const mc_value *y = mc_result(op, 0);
    if (!need_float_rows(p, x, y) || !need(p, weights, MOEC_F32) || !need(p, ids, MOEC_I32)) return;
    launch_rows(p, x, y, "identity", "");
    mc_gpu_value(p, x);
    mc_gpu_value(p, weights);
    mc_gpu_value(p, ids);
    mc_gpu_value(p, y);
    mc_gpu_int(p, mc_plan_rows(p, x->type));
    mc_gpu_int(p, mc_type_last(x->type));
    mc_gpu_int(p, mc_type_last(ids->type));
    mc_plan_const(p, mc_attr_int(op, "first"));
}
