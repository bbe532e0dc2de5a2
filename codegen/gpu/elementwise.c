/* Elementwise ops with broadcasting, cast, and the derivatives of such (kernels/elementwise.cuh). The one idea: the
 * kernel's formula is written out as text from the operands that there are, so one template serves every op.
 *
 * Neighbouring axes on which the same operands stretch are merged, so that almost every op is a flat array, or rows
 * against one vector. */
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"
#include "runtime/base/hash.h"

enum { MAX_OPERANDS = 4, MAX_NUMBERS = MAX_OPERANDS + 2 };

typedef struct formula {
    mc_plan *p;
    const mc_value *y; /* a result: the shape of all */
    const mc_value *operands[MAX_OPERANDS];
    double numbers[MAX_NUMBERS];
    int n_operands, n_numbers;
    mc_str body;
} formula;

/* ---- text ------------------------------------------------------------------------------------------------------- */

static mc_str
number_text(formula *f, double value)
{
    f->numbers[f->n_numbers++] = value;
    return mc_strf(f->p->arena, "f32(n[%d])", f->n_numbers - 1);
}

static mc_str
operand_text(formula *f, const mc_value *v)
{
    double value;
    if (mc_plan_is_const(v, &value)) return number_text(f, value);
    int i = 0;
    while (i < f->n_operands && f->operands[i] != v) i++;
    if (i == f->n_operands) f->operands[f->n_operands++] = v;
    return mc_strf(f->p->arena, "x[%d][j]", i);
}

/* The attributes that the function or slope named `of` takes after its operands. */
static mc_str
attribute_text(formula *f, const mc_op *op, mc_opcode of)
{
    mc_arena *arena = f->p->arena;
    if (of == MC_OP_SOFTCAP) {
        mc_str cap = number_text(f, mc_attr_float(op, "cap"));
        return mc_strf(arena, ", %.*s", MC_FMT(cap));
    }
    if (of != MC_OP_CLAMP) return mc_str_of("");
    mc_str lo = number_text(f, mc_attr_float(op, "lo")), hi = number_text(f, mc_attr_float(op, "hi"));
    return mc_strf(arena, ", %.*s, %.*s", MC_FMT(lo), MC_FMT(hi));
}

static void
add_result(formula *f, int i, mc_str expression)
{
    f->body = mc_strf(f->p->arena, "%.*s    y[%d][j] = %.*s;\n", MC_FMT(f->body), i, MC_FMT(expression));
}

static void
write_formula(formula *f, const mc_op *op)
{
    mc_arena *arena = f->p->arena;
    mc_str x[MAX_OPERANDS];
    for (int i = 0; i < op->n_operands; i++) x[i] = operand_text(f, mc_operand(op, i));
    switch (op->opcode) {
    case MC_OP_CAST:
    case MC_OP_COPY: add_result(f, 0, x[0]); break;
    case MC_OP_FILL: add_result(f, 0, number_text(f, mc_attr_float(op, "value"))); break;
    case MC_OP_ACCUMULATE: add_result(f, 0, mc_strf(arena, "%.*s + %.*s", MC_FMT(x[1]), MC_FMT(x[0]))); break;
    case MC_OP_GLU: {
        mc_str act = mc_attr_str(op, "act");
        add_result(f, 0, mc_strf(arena, "op_%.*s(%.*s) * %.*s", MC_FMT(act), MC_FMT(x[0]), MC_FMT(x[1])));
        break;
    }
    case MC_OP_GLU_GRAD: {
        mc_str act = mc_attr_str(op, "act");
        add_result(
            f, 0,
            mc_strf(arena, "%.*s * %.*s * slope_%.*s(%.*s)", MC_FMT(x[2]), MC_FMT(x[1]), MC_FMT(act), MC_FMT(x[0])));
        add_result(f, 1, mc_strf(arena, "%.*s * op_%.*s(%.*s)", MC_FMT(x[2]), MC_FMT(act), MC_FMT(x[0])));
        break;
    }
    case MC_OP_UNARY_GRAD: {
        mc_str of = mc_attr_str(op, "of"), more = attribute_text(f, op, mc_opcode_find(of));
        add_result(f, 0,
                   mc_strf(arena, "%.*s * slope_%.*s(%.*s%.*s)", MC_FMT(x[1]), MC_FMT(of), MC_FMT(x[0]), MC_FMT(more)));
        break;
    }
    default: {
        mc_str second = op->n_operands > 1 ? mc_strf(arena, ", %.*s", MC_FMT(x[1])) : mc_str_of("");
        mc_str more = attribute_text(f, op, op->opcode);
        add_result(
            f, 0,
            mc_strf(arena, "op_%s(%.*s%.*s%.*s)", mc_op_info_of(op)->text, MC_FMT(x[0]), MC_FMT(second), MC_FMT(more)));
        break;
    }
    }
}

/* ---- shape ------------------------------------------------------------------------------------------------------ */

typedef struct merged {
    int n_axes;
    mc_dim sizes[MC_MAX_RANK];
    unsigned axes[MAX_OPERANDS]; /* bit a: the operand has merged axis a */
} merged;

/* Whether v has result axis a (else it stretches along it). */
static bool
has_axis(const mc_value *v, const mc_type *y, int a)
{
    int i = a - (y->rank - v->type->rank);
    return i >= 0 && mc_dim_eq(v->type->dims[i], y->dims[a]);
}

static merged
merge(const formula *f)
{
    const mc_type *y = f->y->type;
    unsigned before = 0;
    merged m = {0};
    for (int a = 0; a < y->rank; a++) {
        if (mc_dim_eq(y->dims[a], mc_dim_const(1))) continue;
        unsigned now = 0;
        for (int o = 0; o < f->n_operands; o++) now |= (unsigned)has_axis(f->operands[o], y, a) << o;
        mc_dim joined;
        if (m.n_axes && before == now && mc_dim_mul(m.sizes[m.n_axes - 1], y->dims[a], &joined)) {
            m.sizes[m.n_axes - 1] = joined;
            continue;
        }
        for (int o = 0; o < f->n_operands; o++) m.axes[o] |= (now >> o & 1) << m.n_axes;
        m.sizes[m.n_axes++] = y->dims[a];
        before = now;
    }
    if (m.n_axes) return m;
    m.sizes[m.n_axes++] = mc_dim_const(1);
    for (int o = 0; o < f->n_operands; o++) m.axes[o] = 1;
    return m;
}

/* ---- launch ----------------------------------------------------------------------------------------------------- */

static mc_gpu_code
code_of(const formula *f, const mc_op *op, const merged *m, const mc_value *const *results, int n_results)
{
    mc_arena *arena = f->p->arena;
    uint32_t width = mc_gpu_width(m->sizes[m->n_axes - 1], mc_gpu_least_bytes(op));
    mc_gpu_code code = {.file = "elementwise.cuh", .threads = MC_GPU_FLAT_THREADS};
    code.prelude = mc_strf(arena,
                           "struct formula {\n"
                           "static MC_FN void at(const f64 *n, const f32 (*x)[%u], f32 (*y)[%u], int j)\n{\n%.*s}\n};",
                           width, width, MC_FMT(f->body));
    mc_str types = mc_str_of("results<");
    for (int i = 0; i < n_results; i++)
        types = mc_strf(arena, "%.*s%s%s", MC_FMT(types), i ? ", " : "", mc_gpu_type(results[i]->type->dtype));
    types = mc_strf(arena, "%.*s>", MC_FMT(types));
    for (int i = 0; i < f->n_operands; i++)
        types = mc_strf(arena, "%.*s, operand<%s, %u>", MC_FMT(types), mc_gpu_type(f->operands[i]->type->dtype),
                        m->axes[i]);
    code.call = mc_strf(arena, "elementwise<formula, %u, %d, %.*s>(a);", width, m->n_axes, MC_FMT(types));
    mc_gpu_grid(&code, 0, 0, MC_GPU_FLAT_THREADS * width);
    return code;
}

static mc_str
kernel_name(mc_arena *arena, const mc_op *op, const mc_gpu_code *code)
{
    uint64_t hash = mc_hash64(code->prelude.data, code->prelude.len, 0);
    hash = mc_hash64(code->call.data, code->call.len, hash);
    return mc_strf(arena, "%s_%016llx", mc_op_info_of(op)->text, (unsigned long long)hash);
}

/* The formula of op, with these results. */
static void
launch(mc_plan *p, const mc_op *op, const mc_value *const *results, int n_results)
{
    formula f = {.p = p, .y = results[0]};
    write_formula(&f, op);
    merged m = merge(&f);
    mc_gpu_code code = code_of(&f, op, &m, results, n_results);
    mc_gpu_sizes sizes = {0};
    mc_gpu_sizes_add(p, &sizes, mc_plan_count(p, f.y->type));
    for (int a = 0; a < m.n_axes; a++) mc_gpu_sizes_add(p, &sizes, m.sizes[a]);
    mc_gpu_sizes_call(p, &sizes, &code);
    if (op->opcode == MC_OP_ACCUMULATE) /* the parameter may be frozen: no gradient */
        code.call = mc_strf(p->arena, "if (a.ptr[%d]) %.*s", f.n_operands, MC_FMT(code.call));
    mc_plan_launch(p, mc_gpu_kernel_get(p, &code, "%.*s", MC_FMT(kernel_name(p->arena, op, &code))));
    for (int i = 0; i < f.n_operands; i++) mc_gpu_value(p, f.operands[i]);
    for (int i = 0; i < n_results; i++) mc_gpu_value(p, results[i]);
    mc_gpu_sizes_push(p, &sizes);
    for (int i = 0; i < f.n_numbers; i++) mc_plan_float(p, f.numbers[i]);
}

void
mc_gpu_select_elementwise(mc_plan *p, const mc_op *op)
{
    const mc_value *results[2] = {mc_result(op, 0), op->n_results > 1 ? mc_result(op, 1) : NULL};
    if (mc_gpu_need_floats(p, op)) launch(p, op, results, op->n_results);
}

/* Whether d's op has written into the gradient itself. */
static bool
lies_in(const mc_value *d, const mc_value *gradient)
{
    while (d != gradient && d->place.kind == MC_PLACE_VIEW) d = d->place.base;
    return d == gradient;
}

void
mc_gpu_select_accumulate(mc_plan *p, const mc_op *op)
{
    const mc_value *d = mc_operand(op, 0), *gradient = mc_operand(op, 1);
    if (!gradient) {
        mc_plan_refuse(p, "it has no gradient to add to (run lower-to-plan first)");
        return;
    }
    if (!lies_in(d, gradient) && mc_gpu_need_floats(p, op)) launch(p, op, &gradient, 1);
}

/* ---- cast ------------------------------------------------------------------------------------------------------- */

static const char *
element_type(moec_dtype dtype, bool written)
{
    return dtype == MOEC_BOOL && written ? "bool" : mc_gpu_type(dtype);
}

void
mc_gpu_select_cast(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    double value;
    bool constant = mc_plan_is_const(x, &value);
    if (mc_gpu_is_float(y->type->dtype) && (constant || mc_gpu_is_float(x->type->dtype))) {
        launch(p, op, &y, 1);
        return;
    }
    if (constant) {
        mc_plan_refuse(p, "a constant does not become %s", moec_dtype_name(y->type->dtype));
        return;
    }
    mc_gpu_code code = {.file = "cast.cuh", .threads = MC_GPU_FLAT_THREADS};
    code.call =
        mc_strf(p->arena, "cast<%s, %s>(a);", element_type(x->type->dtype, false), element_type(y->type->dtype, true));
    mc_gpu_grid(&code, 0, 0, MC_GPU_FLAT_THREADS);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, x);
    mc_gpu_value(p, y);
    mc_gpu_int(p, mc_plan_count(p, x->type));
}
