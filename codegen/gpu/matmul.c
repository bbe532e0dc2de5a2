/* Matrix products forward, and derivatives of their inputs: one kernel, matmul of kernels/matmul.cuh, whose arguments
 * are the same for all. So this is a table of where each op has its operands, and the choice of a form by element types
 * and by what sizes are multiples of. The number of rows is not known here; the kernel looks at it. */
#include "codegen/gpu/matmul.h"

#include "codegen/gpu/combine.h"
#include "codegen/gpu/hopper.h"
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"
#include "runtime/base/dtype.h"

#include <string.h>

enum {
    THREADS = 256,
    MOST_BLOCKS = 4096, /* that a grid has more than it has tiles: for products of few rows */
    LEAST_ROWS = 32,    /* of a tile */
    LEAST_LINES = 64,
    SCALE_BLOCK = 128,
    /* The greatest stages of gemm_mma.cuh, with FP8 weights, and of gemm_simt.cuh. */
    SHARED_CORES = 65536 + 4 * 64 * 4, /* with factors of k */
    SHARED_FP8 = 40960,
    SHARED_SIMT = 2 * 2 * 16 * (128 + 4) * 4
};

/* Operands by their number in ops.def; 0: the op has none (0 is x). */
typedef struct ports {
    unsigned form;
    int w2, bias, scale, offsets, rows, residual;
} ports;

static ports
ports_of(mc_opcode opcode)
{
    switch (opcode) {
    case MC_OP_LINEAR: return (ports){.bias = 2, .scale = 3, .residual = 4};
    case MC_OP_GATED_LINEAR: return (ports){.form = MC_FORM_PAIR, .w2 = 2, .bias = 3, .scale = 5};
    case MC_OP_GROUPED_MATMUL: return (ports){.form = MC_FORM_EXPERTS, .offsets = 2, .bias = 3, .scale = 4, .rows = 5};
    case MC_OP_MOE_FFN_UP:
        return (ports){.form = MC_FORM_EXPERTS | MC_FORM_PAIR, .w2 = 2, .offsets = 3, .rows = 4, .bias = 5, .scale = 7};
    case MC_OP_MOE_FFN_DOWN: return (ports){.form = MC_FORM_EXPERTS, .offsets = 2, .bias = 5, .scale = 6};
    case MC_OP_LINEAR_DX: return (ports){.form = MC_FORM_COLUMNS, .residual = 2};
    case MC_OP_GROUPED_DX:
        return (ports){.form = MC_FORM_EXPERTS | MC_FORM_COLUMNS, .offsets = 2, .rows = 3, .residual = 4};
    default: return (ports){.scale = 2}; /* head_linear; transposed: MC_FORM_COLUMNS */
    }
}

static const mc_value *
port(const mc_op *op, int i)
{
    return i ? mc_operand(op, i) : NULL;
}

int64_t
mc_gpu_tiles(int64_t n, int64_t div)
{
    return (n + div - 1) / div;
}

bool
mc_gpu_product_is(mc_plan *p, const mc_value *v, moec_dtype dtype, const char *what)
{
    if (!v || v->type->dtype == dtype) return true;
    return mc_plan_refuse(p, "%s is %s, not %s", what, moec_dtype_name(v->type->dtype), moec_dtype_name(dtype));
}

/* ---- kernels ----------------------------------------------------------------------------------------------------- */

mc_str
mc_gpu_product_form(mc_plan *p, const mc_gpu_product *product, const char *act_prefix)
{
    static const char *const names[] = {"EXPERTS", "PAIR",  "COLUMNS", "ALIGNED", "EVEN",
                                        "CORES",   "GATED", "ADD",     "SPLIT"};
    enum { N_NAMES = sizeof names / sizeof *names };
    mc_str form = MC_STR("0");
    for (int i = 0, n = 0; i < N_NAMES; i++)
        if (product->form >> i & 1)
            form = n++ ? mc_strf(p->arena, "%.*s | %s", MC_FMT(form), names[i]) : mc_strf(p->arena, "%s", names[i]);
    mc_str act = product->act.len ? mc_strf(p->arena, ", %s%.*s", act_prefix, MC_FMT(product->act)) : product->act;
    return mc_strf(p->arena, "form<%s, %s, %s, %s, %.*s%.*s>", mc_gpu_type(product->x), mc_gpu_type(product->w),
                   mc_gpu_type(product->y), mc_gpu_type(product->r), MC_FMT(form), MC_FMT(act));
}

mc_plan_kernel *
mc_gpu_product_kernel(mc_plan *p, const mc_gpu_product *product, int64_t blocks)
{
    mc_gpu_code code = {.file = product->file, .threads = THREADS};
    mc_str form = mc_gpu_product_form(p, product, "op_");
    code.call = mc_strf(p->arena, "%s<%.*s>(a);", product->function, MC_FMT(form));
    bool cores = product->form & MC_FORM_CORES;
    code.shared = !cores ? SHARED_SIMT : product->w == MOEC_F8E4M3 ? SHARED_FP8 : SHARED_CORES;
    /* Multiply-adds and factors of k want more registers than two blocks leave. */
    code.blocks = cores && !(product->form & MC_FORM_GATED) ? 2 : 1;
    code.per_sm = code.blocks;
    mc_gpu_grid(&code, 0, 4, LEAST_ROWS);
    code.grid[0].add = (uint32_t)(blocks < 1 ? 1 : blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS);
    mc_plan_kernel *kernel = mc_gpu_kernel_of(p, &code);
    if (cores && product->form & MC_FORM_ADD) { /* on sm_100a adding to a gradient does, too */
        code.blocks = code.per_sm = 1;
        mc_gpu_kernel_special(p, kernel, 100, &code);
    }
    return kernel;
}

/* ---- what the kernel is told ---------------------------------------------------------------------------------------
 */

/* Sizes of a product, and its steps in elements (i[5] .. i[12] of kernels/product.cuh). */
typedef struct sizes {
    mc_dim rows;
    int64_t k, n, groups;
    int64_t x_row, x_group, y_row, y_group, w_row, w_group, first, scale_group;
} sizes;

static sizes
sizes_of(mc_plan *p, const mc_op *op, const ports *at)
{
    const mc_type *x = mc_operand(op, 0)->type, *w = mc_operand(op, 1)->type, *y = mc_result(op, 0)->type;
    bool experts = at->form & MC_FORM_EXPERTS, down = op->opcode == MC_OP_MOE_FFN_DOWN;
    sizes s = {.rows = mc_plan_rows(p, experts && !down ? y : x)};
    s.k = mc_plan_need_const(p, mc_type_last(x), "the width of an input");
    s.n = mc_plan_need_const(p, mc_type_last(y), "the width of a result");
    s.groups = experts ? mc_plan_need_const(p, w->dims[0], "the number of experts") : 1;
    int64_t lines = mc_plan_need_const(p, w->dims[w->rank - 2], "the rows of a weight");
    s.x_row = s.k;
    s.y_row = s.n;
    s.w_row = mc_plan_need_const(p, mc_type_last(w), "the columns of a weight");
    s.w_group = lines * s.w_row;
    s.scale_group = mc_gpu_tiles(lines, SCALE_BLOCK) * mc_gpu_tiles(s.w_row, SCALE_BLOCK);
    return s;
}

static sizes
sizes_of_heads(mc_plan *p, const mc_op *op)
{
    const mc_type *x = mc_operand(op, 0)->type, *w = mc_operand(op, 1)->type, *y = mc_result(op, 0)->type;
    sizes s = {.rows = mc_plan_product(p, x, 0, x->rank - 2)};
    s.k = mc_plan_need_const(p, mc_type_last(x), "the width of a head");
    s.n = mc_plan_need_const(p, mc_type_last(y), "the width of a head");
    s.groups = mc_plan_need_const(p, x->dims[x->rank - 2], "the number of heads");
    if (s.groups < 1) s.groups = 1; /* refused */
    s.x_row = s.groups * s.k;
    s.x_group = s.k;
    s.y_row = s.groups * s.n;
    s.y_group = s.n;
    s.w_row = mc_plan_need_const(p, w->dims[1], "the columns of a weight");
    s.w_group = mc_plan_need_const(p, w->dims[0], "the rows of a weight") / s.groups * s.w_row;
    s.first = mc_attr_int(op, "begin");
    return s;
}

/* What sizes and types allow. */
static unsigned
form_of(const sizes *s, const mc_gpu_product *product, bool heads)
{
    unsigned form = product->form;
    bool columns = form & MC_FORM_COLUMNS, fp8 = product->w == MOEC_F8E4M3;
    bool narrow = product->x == MOEC_BF16 || product->x == MOEC_F16;
    if (s->n % 4 == 0) form |= MC_FORM_EVEN;
    if (s->k % 8 == 0 && s->w_row % 8 == 0 && (!columns || s->n % 8 == 0)) form |= MC_FORM_ALIGNED;
    bool same = product->w == product->x || (fp8 && !columns && !heads && s->k % 16 == 0);
    if ((form & MC_FORM_ALIGNED) && narrow && same) form |= MC_FORM_CORES;
    return form;
}

static void
launch(mc_plan *p, const mc_op *op, const ports *at, const sizes *s, const mc_gpu_product *product, const mc_value *y)
{
    bool pair = at->form & MC_FORM_PAIR;
    int64_t columns = mc_gpu_tiles(s->n, pair ? LEAST_LINES / 2 : LEAST_LINES);
    mc_dim tiles = mc_plan_times(p, s->rows, mc_dim_const(columns * (at->form & MC_FORM_EXPERTS ? 1 : s->groups)));
    int64_t few =
        s->groups < MOST_BLOCKS && s->n < (int64_t)MOST_BLOCKS * 4 ? s->groups * mc_gpu_tiles(s->n, 4) : MOST_BLOCKS;
    mc_plan_kernel *kernel = mc_gpu_product_kernel(p, product, few);
    mc_gpu_hopper_product(p, kernel, product);
    mc_plan_launch(p, kernel);
    mc_gpu_value(p, y);
    mc_gpu_value(p, mc_operand(op, 0));
    mc_gpu_value(p, mc_operand(op, 1));
    mc_gpu_value(p, port(op, at->w2));
    mc_gpu_value(p, port(op, at->bias));
    mc_gpu_value(p, pair ? port(op, at->bias + 1) : NULL);
    mc_gpu_value(p, port(op, at->scale));
    mc_gpu_value(p, pair ? port(op, at->scale + 1) : NULL);
    mc_gpu_value(p, port(op, at->offsets));
    mc_gpu_value(p, port(op, at->rows));
    mc_gpu_value(p, port(op, at->residual));
    mc_gpu_int(p, s->rows);
    mc_plan_const(p, s->k);
    mc_plan_const(p, s->n);
    mc_plan_const(p, s->groups);
    mc_gpu_int(p, tiles);
    const int64_t steps[] = {s->x_row, s->x_group, s->y_row, s->y_group,
                             s->w_row, s->w_group, s->first, s->scale_group};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) mc_plan_const(p, steps[i]);
}

/* ---- ops --------------------------------------------------------------------------------------------------------- */

static bool
check(mc_plan *p, const mc_op *op, const ports *at, const sizes *s)
{
    bool pair = at->form & MC_FORM_PAIR;
    const mc_value *x = mc_operand(op, 0), *w = mc_operand(op, 1), *residual = port(op, at->residual);
    moec_dtype weight = w->type->dtype;
    if (p->failed) return false;
    if (!mc_gpu_is_float(x->type->dtype) || !mc_gpu_is_float(mc_result(op, 0)->type->dtype) ||
        (residual && !mc_gpu_is_float(residual->type->dtype)))
        return mc_plan_refuse(p, "it takes and gives f32, bf16 or f16");
    if (!mc_gpu_is_float(weight) && weight != MOEC_F8E4M3)
        return mc_plan_refuse(p, "no kernel reads weights of type %s", moec_dtype_name(weight));
    if (pair && mc_operand(op, at->w2) == w && w->def && mc_str_is(mc_attr_str(w->def, "layout"), "pair_panels"))
        return mc_plan_refuse(p, "its two weights are packed as one");
    if (s->groups > MC_GPU_MOST_GROUPS)
        return mc_plan_refuse(p, "it has %lld experts or heads, more than %d", (long long)s->groups,
                              MC_GPU_MOST_GROUPS);
    for (int i = 0; i < 1 + pair; i++) {
        if (pair && !mc_gpu_product_is(p, mc_operand(op, at->w2), weight, "its second weight")) return false;
        if (at->bias && !mc_gpu_product_is(p, mc_operand(op, at->bias + i), MOEC_F32, "its bias")) return false;
        if (at->scale && !mc_gpu_product_is(p, mc_operand(op, at->scale + i), MOEC_F32, "its scale")) return false;
    }
    return mc_gpu_product_is(p, port(op, at->offsets), MOEC_I32, "its offsets") &&
           mc_gpu_product_is(p, port(op, at->rows), MOEC_I32, "its list of rows");
}

static mc_gpu_product
product_of(const mc_op *op, const ports *at, const sizes *s, bool heads, moec_dtype y)
{
    const mc_value *residual = port(op, at->residual);
    mc_gpu_product product = {.file = "matmul.cuh",
                              .function = "matmul",
                              .x = mc_operand(op, 0)->type->dtype,
                              .w = mc_operand(op, 1)->type->dtype,
                              .y = y,
                              .r = residual ? residual->type->dtype : MOEC_F32,
                              .form = at->form};
    if (at->form & MC_FORM_PAIR) product.act = mc_attr_str(op, "act");
    product.form = form_of(s, &product, heads);
    return product;
}

void
mc_gpu_select_matmul(mc_plan *p, const mc_op *op)
{
    ports at = ports_of(op->opcode);
    sizes s = sizes_of(p, op, &at);
    if (!check(p, op, &at, &s)) return;
    mc_gpu_product product = product_of(op, &at, &s, false, mc_result(op, 0)->type->dtype);
    launch(p, op, &at, &s, &product, mc_result(op, 0));
}

void
mc_gpu_select_head_linear(mc_plan *p, const mc_op *op)
{
    ports at = ports_of(op->opcode);
    if (mc_attr_bool(op, "transposed")) at.form |= MC_FORM_COLUMNS;
    sizes s = sizes_of_heads(p, op);
    if (!check(p, op, &at, &s)) return;
    mc_gpu_product product = product_of(op, &at, &s, true, mc_result(op, 0)->type->dtype);
    launch(p, op, &at, &s, &product, mc_result(op, 0));
}

/* What experts give lies in scratch memory, in f32, until combine adds it up. */
void
mc_gpu_select_ffn_down(mc_plan *p, const mc_op *op)
{
    ports at = ports_of(op->opcode);
    sizes s = sizes_of(p, op, &at);
    if (!check(p, op, &at, &s) || !mc_gpu_product_is(p, mc_operand(op, 4), MOEC_F32, "its gates") ||
        !mc_gpu_product_is(p, mc_operand(op, 3), MOEC_I32, "its list of tokens"))
        return;
    mc_gpu_product product = product_of(op, &at, &s, false, MOEC_F32);
    launch(p, op, &at, &s, &product, NULL);
    mc_gpu_combine c = {.y_dtype = MOEC_F32,
                        .rows = mc_operand(op, 3),
                        .offsets = mc_operand(op, 2),
                        .gates = mc_operand(op, 4),
                        .x = mc_result(op, 0)};
    mc_gpu_combine_rows(p, &c);
}
