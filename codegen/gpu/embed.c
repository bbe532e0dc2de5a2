/* embed and embed_dw: kernels/embed.cuh. Each row of the table's derivative is the sum along a chain of equal ids, in
 * order; a first launch finds the chains. */
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"
#include "runtime/base/dtype.h"

enum { LINK_THREADS = 128, WARPS = LINK_THREADS / 32, COLUMN_THREADS = 256 };

void
mc_gpu_select_embed(mc_plan *p, const mc_op *op)
{
    const mc_value *ids = mc_operand(op, 0), *table = mc_operand(op, 1), *y = mc_result(op, 0);
    moec_dtype dtype = table->type->dtype;
    if (ids->type->dtype != MOEC_I32 || !mc_gpu_is_float(y->type->dtype) || !mc_dtype_is_float(dtype) ||
        dtype == MOEC_F64) {
        mc_plan_refuse(p, "ids must be i32, the result f32, bf16 or f16, the table of a float type up to 32 bits");
        return;
    }
    mc_dim d = table->type->dims[1];
    uint32_t width = mc_gpu_width(d, mc_gpu_least_bytes(op));
    mc_gpu_code code = {.file = "embed.cuh", .threads = MC_GPU_FLAT_THREADS};
    code.call = mc_strf(p->arena, "embed<%s, %s, %u, %lld>(a);", mc_gpu_type(dtype), mc_gpu_type(y->type->dtype), width,
                        (long long)mc_plan_need_const(p, d, "a row of the table"));
    mc_gpu_grid(&code, 0, 0, MC_GPU_FLAT_THREADS * width);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, ids);
    mc_gpu_value(p, table);
    mc_gpu_value(p, y);
    mc_gpu_int(p, mc_plan_count(p, y->type));
    mc_gpu_int(p, table->type->dims[0]);
}

/* ---- embed_dw --------------------------------------------------------------------------------------------------- */

static void
launch_links(mc_plan *p, const mc_value *ids, mc_dim n)
{
    mc_gpu_code code = {.file = "embed.cuh", .threads = LINK_THREADS, .call = mc_str_of("embed_links(a);")};
    mc_gpu_grid(&code, 0, 0, WARPS);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, ids);
    mc_gpu_int(p, n);
    mc_plan_scratch_dim(p, mc_plan_times(p, n, mc_dim_const((int64_t)sizeof(int32_t))));
}

/* The first launch clears what no id asks for; a gradient keeps it. */
static void
launch_clear(mc_plan *p, const mc_value *table)
{
    mc_gpu_code code = {.file = "embed.cuh", .threads = MC_GPU_FLAT_THREADS, .call = mc_str_of("embed_clear(a);")};
    mc_gpu_grid(&code, 0, 0, MC_GPU_FLAT_THREADS);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, table);
    mc_gpu_int(p, mc_plan_count(p, table->type));
}

void
mc_gpu_select_embed_dw(mc_plan *p, const mc_op *op)
{
    const mc_value *ids = mc_operand(op, 0), *dy = mc_operand(op, 1), *table = mc_result(op, 0);
    if (ids->type->dtype != MOEC_I32 || !mc_gpu_is_float(dy->type->dtype) || table->type->dtype != MOEC_F32) {
        mc_plan_refuse(p, "ids must be i32, the derivative f32, bf16 or f16, the result f32");
        return;
    }
    mc_dim n = mc_plan_count(p, ids->type), d = table->type->dims[1];
    bool in_gradient = mc_plan_in_gradient(table);
    uint32_t width = mc_gpu_width(d, moec_dtype_bytes(dy->type->dtype));
    launch_links(p, ids, n);
    if (!in_gradient) launch_clear(p, table);
    mc_gpu_code code = {.file = "embed.cuh", .threads = COLUMN_THREADS};
    code.call = mc_strf(p->arena, "embed_dw<%s, %u, %s>(a);", mc_gpu_type(dy->type->dtype), width,
                        in_gradient ? "true" : "false");
    mc_gpu_grid(&code, 0, 0, 1);
    mc_gpu_grid(&code, 1, 1, COLUMN_THREADS * width);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, ids);
    mc_gpu_value(p, dy);
    mc_gpu_value(p, table);
    mc_gpu_int(p, n);
    mc_gpu_int(p, d);
    mc_gpu_int(p, table->type->dims[0]);
    mc_plan_scratch_dim(p, mc_plan_times(p, n, mc_dim_const((int64_t)sizeof(int32_t))));
}
