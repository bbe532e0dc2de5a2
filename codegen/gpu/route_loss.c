/* Loads of experts, routing losses and their derivatives (kernels/route_loss.cuh). */
#include "codegen/gpu/combine.h"
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"

enum {
    THREADS = 256,
    PARTS = 1024,
    LOAD_CHUNK = 1024,
    COUNT_CHUNK = 2048,
    PART_ROWS = 64,
    WARPS = 4,
    BALANCE_PARTS = 128
};
enum { MAX_COUNTED = 8192, MAX_ROW = 8192 };

static bool
need(mc_plan *p, const mc_value *v, moec_dtype dtype)
{
    if (v->type->dtype == dtype) return true;
    return mc_plan_refuse(p, "an operand or result is %s, not %s", moec_dtype_name(v->type->dtype),
                          moec_dtype_name(dtype));
}

/* A launch of blocks that each take `each` of i[from]; each = 0: one block. */
static void
launch(mc_plan *p, mc_str call, uint32_t threads, uint32_t from, uint32_t each)
{
    mc_gpu_code code = {.file = "route_loss.cuh", .call = call, .threads = threads};
    if (each) mc_gpu_grid(&code, 0, from, each);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
}

/* A cotangent: a scalar in memory, or f[0]. */
static void
give_cotangent(mc_plan *p, const mc_value *d)
{
    double value;
    bool constant = mc_plan_is_const(d, &value);
    mc_gpu_value(p, constant ? NULL : d);
    if (constant) mc_plan_float(p, value);
}

/* ---- loads ----------------------------------------------------------------------------------------------------- */

void
mc_gpu_select_load(mc_plan *p, const mc_op *op)
{
    const mc_value *weights = mc_operand(op, 0), *ids = mc_operand(op, 1);
    int64_t experts = mc_attr_int(op, "experts");
    if (!need(p, weights, MOEC_F32) || !need(p, ids, MOEC_I32)) return;
    mc_dim n = mc_plan_count(p, ids->type);
    int64_t each = (experts * 16 + LOAD_CHUNK - 1) / LOAD_CHUNK;
    mc_plan_scratch_dim(p, mc_gpu_plus(mc_plan_times(p, n, mc_dim_const(each)), experts * 16));
    launch(p, MC_STR("load_parts(a);"), THREADS, 0, LOAD_CHUNK);
    mc_gpu_value(p, weights);
    mc_gpu_value(p, ids);
    mc_gpu_int(p, n);
    mc_plan_const(p, experts);
    launch(p, MC_STR("load_sum(a);"), THREADS, 1, THREADS);
    mc_gpu_value(p, mc_result(op, 0));
    mc_gpu_int(p, n);
    mc_plan_const(p, experts);
}

/* ---- balance --------------------------------------------------------------------------------------------------- */

typedef struct balance {
    mc_dim sequences, rows, rows_of_one, choices, choices_of_one;
    int64_t experts;
} balance;

static bool
read_balance(mc_plan *p, const mc_op *op, const mc_value *ids, const mc_value *scores, balance *b)
{
    const mc_type *t = ids->type;
    int split = mc_str_is(mc_attr_str(op, "per"), "sequence") ? 1 : 0;
    if (!need(p, ids, MOEC_I32) || !need(p, scores, MOEC_F32)) return false;
    b->experts = mc_plan_need_const(p, mc_type_last(scores->type), "the number of experts");
    b->sequences = mc_plan_product(p, t, 0, split);
    b->rows_of_one = mc_plan_product(p, t, split, t->rank - 1);
    b->choices_of_one = mc_plan_product(p, t, split, t->rank);
    b->rows = mc_plan_rows(p, t);
    b->choices = mc_plan_count(p, t);
    if (b->experts > MAX_COUNTED) return mc_plan_refuse(p, "choices of more than %d experts", (int)MAX_COUNTED);
    return !p->failed;
}

static void
give_balance(mc_plan *p, const balance *b)
{
    mc_gpu_int(p, b->rows);
    mc_plan_const(p, b->experts);
    mc_gpu_int(p, b->rows_of_one);
    mc_gpu_int(p, b->choices_of_one);
    mc_gpu_int(p, b->sequences);
}

/* Counts of every sequence into scratch, after the parts of a sum. */
static void
count_choices(mc_plan *p, const balance *b, const mc_value *ids)
{
    mc_dim numbers = mc_plan_times(p, b->sequences, mc_dim_const(b->experts));
    mc_plan_scratch_dim(p, mc_gpu_plus(mc_plan_times(p, numbers, mc_dim_const(4)), BALANCE_PARTS * 8));
    launch(p, MC_STR("count_clear(a);"), THREADS, 0, THREADS);
    mc_gpu_int(p, numbers);
    launch(p, mc_strf(p->arena, "count<%lld>(a);", (long long)b->experts), THREADS, 0, COUNT_CHUNK);
    mc_gpu_value(p, ids);
    mc_gpu_int(p, b->choices);
    mc_plan_const(p, b->experts);
    mc_gpu_int(p, b->choices_of_one);
}

void
mc_gpu_select_balance(mc_plan *p, const mc_op *op)
{
    const mc_value *scores = mc_operand(op, 0), *ids = mc_operand(op, 1);
    balance b;
    if (!read_balance(p, op, ids, scores, &b)) return;
    count_choices(p, &b, ids);
    launch(p, MC_STR("balance_parts(a);"), THREADS, 5, 1);
    mc_gpu_value(p, scores);
    give_balance(p, &b);
    mc_plan_const(p, BALANCE_PARTS);
    launch(p, MC_STR("balance_sum(a);"), PARTS, 0, 0);
    mc_gpu_value(p, mc_result(op, 0));
    give_balance(p, &b);
}

void
mc_gpu_select_balance_grad(mc_plan *p, const mc_op *op)
{
    const mc_value *ids = mc_operand(op, 0), *d = mc_operand(op, 1), *y = mc_result(op, 0);
    balance b;
    if (!need(p, d, MOEC_F32) || !read_balance(p, op, ids, y, &b)) return;
    count_choices(p, &b, ids);
    launch(p, MC_STR("balance_grad(a);"), 32 * WARPS, 0, WARPS);
    give_cotangent(p, d);
    mc_gpu_value(p, y);
    give_balance(p, &b);
}

/* ---- z loss ---------------------------------------------------------------------------------------------------- */

/* The constant number of experts of a row, 0 after a refusal. */
static int64_t
experts_of(mc_plan *p, const mc_value *logits)
{
    int64_t n = mc_plan_need_const(p, mc_type_last(logits->type), "the number of experts");
    if (n > MAX_ROW) mc_plan_refuse(p, "rows of more than %d experts", (int)MAX_ROW);
    return need(p, logits, MOEC_F32) && n >= 1 && n <= MAX_ROW ? n : 0;
}

void
mc_gpu_select_z_loss(mc_plan *p, const mc_op *op)
{
    const mc_value *logits = mc_operand(op, 0);
    int64_t experts = experts_of(p, logits);
    mc_dim rows = mc_plan_rows(p, logits->type);
    if (!experts) return;
    mc_plan_scratch_dim(p, mc_gpu_plus(rows, 8)); /* 8 bytes for each 64 */
    mc_gpu_code code = {.file = "route_loss.cuh", .threads = THREADS, .spills_allowed = experts > 1024};
    code.call = mc_strf(p->arena, "z_parts<%lld>(a);", (long long)experts);
    mc_gpu_grid(&code, 0, 0, PART_ROWS);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, logits);
    mc_gpu_int(p, rows);
    launch(p, MC_STR("z_sum(a);"), PARTS, 0, 0);
    mc_gpu_value(p, mc_result(op, 0));
    mc_gpu_int(p, rows);
}

void
mc_gpu_select_z_loss_grad(mc_plan *p, const mc_op *op)
{
    const mc_value *logits = mc_operand(op, 0), *d = mc_operand(op, 1);
    int64_t experts = experts_of(p, logits);
    if (!experts || !need(p, d, MOEC_F32)) return;
    mc_gpu_code code = {.file = "route_loss.cuh", .threads = 32 * WARPS, .spills_allowed = experts > 1024};
    code.call = mc_strf(p->arena, "z_grad<%lld>(a);", (long long)experts);
    mc_gpu_grid(&code, 0, 0, WARPS);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, logits);
    give_cotangent(p, d);
    mc_gpu_value(p, mc_result(op, 0));
    mc_gpu_int(p, mc_plan_rows(p, logits->type));
}
