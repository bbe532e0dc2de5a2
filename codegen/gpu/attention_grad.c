/* sdpa_grad: kernels/attention_grad.cuh. Two launches: by rows, which gives dq and leaves what it knows of every row in
 * scratch, and by keys, which gives dk and dv. */
#include "codegen/gpu/attention.h"
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"

enum { THREADS = 128, SHARED_MOST = 98 * 1024 };
enum { I_ROWS, I_KEYS = 12 }; /* integers that grids follow */

/* grad_form, in bytes. */
static int64_t
form_bytes(int64_t width, int64_t value, int rm, int bn)
{
    int64_t rows = 8 * rm, ws = ((width + 3) / 4 | 1) * 4, vs = ((value + 3) / 4 | 1) * 4;
    return 4 * ((rows + bn) * (ws + vs) + 64 + 2 * rows * (bn + 4));
}

static bool
choose_form(int64_t width, int64_t value, int *rm, int *bn)
{
    static const int forms[][2] = {{4, 32}, {2, 32}, {2, 16}, {1, 16}};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        *rm = forms[i][0];
        *bn = forms[i][1];
        int64_t sums = *rm * ((width + 63) / 64 + (value + 63) / 64) * 4; /* registers of dk and dv */
        if (sums <= 96 && form_bytes(width, value, *rm, *bn) <= SHARED_MOST) return true;
    }
    return false;
}

static bool
check_types(mc_plan *p, const mc_op *op)
{
    moec_dtype dtype = mc_operand(op, 0)->type->dtype;
    bool same = mc_gpu_is_float(dtype) && mc_gpu_is_float(mc_operand(op, 3)->type->dtype);
    for (int i = 0; i < 3; i++)
        same &= mc_operand(op, i)->type->dtype == dtype && mc_result(op, i)->type->dtype == dtype;
    return same || mc_plan_refuse(p, "its queries, keys and values, or their gradients, are not of one type");
}

static void
give_arguments(mc_plan *p, const mc_op *op)
{
    const mc_type *q = mc_operand(op, 0)->type, *k = mc_operand(op, 1)->type;
    for (int i = 0; i < 4; i++) mc_gpu_value(p, mc_operand(op, i));
    for (int i = 0; i < 3; i++) mc_gpu_value(p, mc_result(op, i));
    mc_gpu_int(p, mc_plan_product(p, q, 0, 3));
    for (int i = 0; i < 2; i++) mc_gpu_int(p, q->dims[i]);
    mc_gpu_int(p, k->dims[2]);
    mc_gpu_history(p, k->dims[1]);
    mc_gpu_attention_reach(p, op);
    for (int i = 0; i < 4; i++) mc_plan_const(p, 0); /* no states, no list */
    mc_gpu_int(p, mc_plan_times(p, mc_plan_times(p, k->dims[0], k->dims[2]), mc_gpu_fresh(p, k->dims[1])));
    mc_plan_float(p, mc_attr_float(op, "scale"));
    mc_plan_float(p, mc_attr_float(op, "softcap"));
}

static void
launch(mc_plan *p, const mc_op *op, mc_gpu_code *code, const char *function, const char *form, uint32_t from, int rows)
{
    code->call = mc_strf(p->arena, "%s<%s>(a);", function, form);
    code->grid[0] = (moec_abi_grid_axis){.from = from, .div = (uint32_t)rows, .add = 1};
    mc_plan_launch(p, mc_gpu_kernel_of(p, code));
    give_arguments(p, op);
}

void
mc_gpu_select_sdpa_grad(mc_plan *p, const mc_op *op)
{
    const mc_type *q = mc_operand(op, 0)->type, *k = mc_operand(op, 1)->type, *v = mc_operand(op, 2)->type;
    int64_t width = mc_plan_need_const(p, q->dims[3], "the width of a head");
    int64_t value = mc_plan_need_const(p, v->dims[3], "the width of a value");
    mc_dim group = q->dims[2];
    mc_dim_div(group, k->dims[2], &group);
    int64_t n_group = mc_plan_need_const(p, group, "the number of heads");
    int rm, bn;
    if (p->failed || !check_types(p, op)) return;
    if (!choose_form(width, value, &rm, &bn)) {
        mc_plan_refuse(p, "heads of %lld and values of %lld channels do not fit into shared memory", (long long)width,
                       (long long)value);
        return;
    }
    mc_str form = mc_strf(p->arena, "attention<%s, %s, %lld, %lld, 0, %lld, %d, %d, 0>, %d, %d", mc_gpu_type(q->dtype),
                          mc_gpu_type(mc_operand(op, 3)->type->dtype), (long long)width, (long long)value,
                          (long long)n_group, mc_gpu_attention_flags(op), 8 * rm, rm, bn);
    mc_gpu_code code = {.file = "attention_grad.cuh", .threads = THREADS, .blocks = 2};
    code.shared = (uint32_t)form_bytes(width, value, rm, bn);
    code.spills_allowed = width > 256 || value > 256;
    launch(p, op, &code, "attend_grad_rows", form.data, I_ROWS, 8 * rm);
    launch(p, op, &code, "attend_grad_keys", form.data, I_KEYS, 8 * rm);
    mc_plan_scratch_dim(p, mc_plan_times(p, mc_plan_product(p, q, 0, 3), mc_dim_const(3 * (int64_t)sizeof(float))));
}
