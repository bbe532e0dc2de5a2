/* Routing that is not row by row, or needs no scores: route.choose, route.lookup, route.hash. Chains of the others:
 * route_chain.c. */
#include "codegen/gpu/combine.h"
#include "codegen/gpu/route_chain.h"
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"

enum { THREADS = 256, LAST_THREADS = 512, WARPS = 8, TURN = 32 };

void
mc_gpu_select_route(mc_plan *p, const mc_op *op)
{
    mc_gpu_route_alone(p, op);
}

static bool
need(mc_plan *p, const mc_value *v, moec_dtype dtype)
{
    if (v->type->dtype == dtype) return true;
    return mc_plan_refuse(p, "an operand is %s, not %s", moec_dtype_name(v->type->dtype), moec_dtype_name(dtype));
}

/* ---- expert choice --------------------------------------------------------------------------------------------- */

static void
launch_choose(mc_plan *p, const mc_op *op, const mc_gpu_code *code)
{
    const mc_value *value = mc_operand(op, 0);
    mc_plan_launch(p, mc_gpu_kernel_of(p, code));
    mc_gpu_value(p, value);
    mc_gpu_value(p, mc_result(op, 0));
    mc_gpu_value(p, mc_result(op, 1));
    mc_gpu_int(p, mc_plan_rows(p, value->type));
    mc_gpu_int(p, mc_type_last(value->type));
    mc_gpu_int(p, mc_plan_count(p, value->type));
    mc_plan_float(p, mc_attr_float(op, "factor"));
}

/* Columns become rows of orders, a block finds the last token of each expert, and what is taken follows. */
void
mc_gpu_select_choose(mc_plan *p, const mc_op *op)
{
    const mc_value *value = mc_operand(op, 0);
    if (!need(p, value, MOEC_F32)) return;
    int64_t experts = mc_plan_need_const(p, mc_type_last(value->type), "the number of experts");
    mc_dim orders = mc_plan_times(p, mc_plan_rows(p, value->type), mc_dim_const(experts * 4));
    mc_plan_scratch_dim(p, mc_gpu_plus(orders, experts * 8 + 8));
    mc_gpu_code turn = {.file = "choose.cuh", .call = MC_STR("choose_turn(a);"), .threads = THREADS};
    mc_gpu_grid(&turn, 0, 0, TURN);
    mc_gpu_grid(&turn, 1, 1, TURN);
    launch_choose(p, op, &turn);
    mc_gpu_code last = {.file = "choose.cuh", .call = MC_STR("choose_last(a);"), .threads = LAST_THREADS};
    mc_gpu_grid(&last, 0, 1, 1);
    launch_choose(p, op, &last);
    mc_gpu_code take = {.file = "choose.cuh", .call = MC_STR("choose_take(a);"), .threads = THREADS};
    mc_gpu_grid(&take, 0, 2, THREADS);
    launch_choose(p, op, &take);
}

/* ---- tables ---------------------------------------------------------------------------------------------------- */

void
mc_gpu_select_lookup(mc_plan *p, const mc_op *op)
{
    const mc_value *table = mc_operand(op, 0), *tokens = mc_operand(op, 1), *ids = mc_result(op, 0);
    if (!need(p, table, MOEC_I32) || !need(p, tokens, MOEC_I32)) return;
    mc_gpu_code code = {.file = "route.cuh", .call = MC_STR("lookup(a);"), .threads = THREADS};
    mc_gpu_grid(&code, 0, 0, THREADS);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, table);
    mc_gpu_value(p, tokens);
    mc_gpu_value(p, ids);
    mc_gpu_int(p, mc_plan_count(p, ids->type));
    mc_gpu_int(p, table->type->dims[1]);
    mc_gpu_int(p, table->type->dims[0]);
}

void
mc_gpu_select_hash(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *planes = mc_operand(op, 1), *table = mc_operand(op, 2);
    if (!need(p, planes, MOEC_F32) || !need(p, table, MOEC_I32)) return;
    if (!mc_gpu_is_float(x->type->dtype)) {
        mc_plan_refuse(p, "its input must be f32, bf16 or f16");
        return;
    }
    mc_gpu_code code = {.file = "route.cuh", .threads = 32 * WARPS};
    code.call = mc_strf(p->arena, "hash<%s>(a);", mc_gpu_type(x->type->dtype));
    mc_gpu_grid(&code, 0, 0, WARPS);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, x);
    mc_gpu_value(p, planes);
    mc_gpu_value(p, table);
    mc_gpu_value(p, mc_result(op, 0));
    mc_gpu_int(p, mc_plan_times(p, mc_plan_rows(p, x->type), table->type->dims[0]));
    mc_gpu_int(p, table->type->dims[0]);
    mc_gpu_int(p, mc_type_last(x->type));
    mc_gpu_int(p, table->type->dims[1]);
    mc_gpu_int(p, table->type->dims[2]);
}
