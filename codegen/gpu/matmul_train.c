/* Gradients of weights: kernels/matmul_dw.cuh. A result that lies in a gradient is added to it. One that has few tiles
 * (a router's) is summed in parts, so that more blocks take part. */
#include "codegen/gpu/matmul.h"
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"

enum {
    LEAST_SIDE = 64,
    LEAST_ROWS = 32, /* of mc_gpu_product_kernel's grid */
    GREAT_SIDE = 128,
    FEW_TILES = 64, /* great ones, that leave most multiprocessors idle */
    PARTS = 16,     /* DW_PARTS */
    JOIN_THREADS = 256
};

static bool
check(mc_plan *p, const mc_op *op, int64_t groups)
{
    if (p->failed) return false;
    for (int i = 0; i < 2; i++)
        if (!mc_gpu_is_float(mc_operand(op, i)->type->dtype)) return mc_plan_refuse(p, "it takes f32, bf16 or f16");
    if (!mc_gpu_is_float(mc_result(op, 0)->type->dtype)) return mc_plan_refuse(p, "it gives f32, bf16 or f16");
    if (groups > MC_GPU_MOST_GROUPS)
        return mc_plan_refuse(p, "it has %lld experts, more than %d", (long long)groups, MC_GPU_MOST_GROUPS);
    for (int i = 2; i < op->n_operands; i++)
        if (!mc_gpu_product_is(p, mc_operand(op, i), i == 5 ? MOEC_F32 : MOEC_I32, i == 5 ? "its gates" : "a list"))
            return false;
    return true;
}

static unsigned
form_of(const mc_op *op, bool experts, const mc_value *gates, int64_t o, int64_t i)
{
    moec_dtype dy = mc_operand(op, 0)->type->dtype, x = mc_operand(op, 1)->type->dtype;
    unsigned form = experts ? MC_FORM_EXPERTS : 0;
    if (o % 8 == 0 && i % 8 == 0) form |= MC_FORM_ALIGNED;
    if (i % 4 == 0) form |= MC_FORM_EVEN;
    if ((form & MC_FORM_ALIGNED) && dy == x && dy != MOEC_F32) form |= MC_FORM_CORES;
    if (gates) form |= MC_FORM_GATED;
    if (!experts && mc_gpu_tiles(o, GREAT_SIDE) * mc_gpu_tiles(i, GREAT_SIDE) < FEW_TILES)
        form |= MC_FORM_SPLIT;
    else if (mc_plan_in_gradient(mc_result(op, 0)))
        form |= MC_FORM_ADD;
    return form;
}

static void
join(mc_plan *p, const mc_op *op, int64_t n)
{
    const mc_value *dw = mc_result(op, 0);
    int width = n % 4 == 0 ? 4 : 1;
    mc_gpu_code code = {.file = "matmul_dw.cuh", .threads = JOIN_THREADS};
    code.call = mc_strf(p->arena, "dw_join<%s, %d, %s>(a);", mc_gpu_type(dw->type->dtype), width,
                        mc_plan_in_gradient(dw) ? "true" : "false");
    mc_gpu_grid(&code, 0, 1, (uint32_t)(JOIN_THREADS * width));
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, dw);
    mc_gpu_int(p, mc_plan_rows(p, mc_operand(op, 0)->type));
    mc_plan_const(p, n);
}

void
mc_gpu_select_matmul_dw(mc_plan *p, const mc_op *op)
{
    bool experts = op->opcode == MC_OP_GROUPED_DW;
    const mc_value *dy = mc_operand(op, 0), *x = mc_operand(op, 1), *dw = mc_result(op, 0);
    int64_t o = mc_plan_need_const(p, mc_type_last(dy->type), "the width of a gradient");
    int64_t i = mc_plan_need_const(p, mc_type_last(x->type), "the width of an input");
    int64_t groups = experts ? mc_plan_need_const(p, dw->type->dims[0], "the number of experts") : 1;
    if (!check(p, op, groups)) return;
    const mc_value *lists[4] = {0}; /* offsets, rows of dy, rows of x, gates */
    for (int n = 0; experts && n < 4; n++) lists[n] = mc_operand(op, n + 2);
    mc_gpu_product product = {.file = "matmul_dw.cuh",
                              .function = "matmul_dw",
                              .x = dy->type->dtype,
                              .w = x->type->dtype,
                              .y = dw->type->dtype,
                              .r = MOEC_F32,
                              .form = form_of(op, experts, lists[3], o, i)};
    bool split = product.form & MC_FORM_SPLIT;
    int64_t parts = split ? PARTS : groups;
    if (split) product.y = MOEC_F32;
    if (split) mc_plan_scratch_dim(p, mc_dim_const(PARTS * o * i * 4));
    mc_plan_launch(p, mc_gpu_product_kernel(p, &product, 1));
    mc_gpu_value(p, dw);
    mc_gpu_value(p, dy);
    mc_gpu_value(p, x);
    for (int n = 0; n < 4; n++) mc_gpu_value(p, lists[n]);
    mc_gpu_int(p, mc_plan_rows(p, dy->type));
    mc_plan_const(p, o);
    mc_plan_const(p, i);
    mc_plan_const(p, groups);
    mc_plan_const(p, parts * mc_gpu_tiles(o, LEAST_SIDE) * mc_gpu_tiles(i, LEAST_SIDE) * LEAST_ROWS);
    if (split) join(p, op, o * i);
}
