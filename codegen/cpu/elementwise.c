/* Elementwise ops with broadcasting, and cast. The one idea: neighbouring axes on which the same operands stretch are
 * merged, so almost every op becomes a flat array (or rows against one vector) before a kernel is chosen.
 *
 * ptr: operands, y   i: the merged sizes, outermost first   f: constant operands, then the op's own numbers */
#include "codegen/cpu/math.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

enum { MAX_AXES = 4, GRAIN = 64, CHUNK = 1024 };
enum { FORM_CONST = -1 }; /* of an operand: a number. Otherwise bits: axis a of the merged ones is present */

typedef struct merged {
    int n_axes;
    mc_dim sizes[MAX_AXES];
    int64_t form[2];
    double value[2];
    int n_operands;
} merged;

/* Whether operand v has result axis a (else it stretches along it). */
static bool
has_axis(const mc_value *v, const mc_type *y, int a)
{
    int i = a - (y->rank - v->type->rank);
    return i >= 0 && mc_dim_eq(v->type->dims[i], y->dims[a]);
}

static bool
merge(mc_plan *p, const mc_op *op, merged *m)
{
    const mc_type *y = mc_result(op, 0)->type;
    int64_t bits[MAX_AXES] = {0}; /* bit o: operand o has the merged axis */
    *m = (merged){.n_operands = op->n_operands};
    for (int a = 0; a < y->rank; a++) {
        if (mc_dim_eq(y->dims[a], mc_dim_const(1))) continue;
        int64_t now = 0;
        for (int o = 0; o < op->n_operands; o++) now |= (int64_t)has_axis(mc_operand(op, o), y, a) << o;
        mc_dim joined;
        if (m->n_axes && bits[m->n_axes - 1] == now && mc_dim_mul(m->sizes[m->n_axes - 1], y->dims[a], &joined)) {
            m->sizes[m->n_axes - 1] = joined;
            continue;
        }
        if (m->n_axes == MAX_AXES) return mc_plan_refuse(p, "its operands stretch in more than %d ways", (int)MAX_AXES);
        bits[m->n_axes] = now;
        m->sizes[m->n_axes++] = y->dims[a];
    }
    if (!m->n_axes) m->sizes[m->n_axes++] = mc_dim_const(1);
    for (int o = 0; o < op->n_operands; o++) {
        if (mc_plan_is_const(mc_operand(op, o), &m->value[o])) {
            m->form[o] = FORM_CONST;
            continue;
        }
        for (int a = 0; a < m->n_axes; a++) m->form[o] |= (bits[a] >> o & 1) << a;
    }
    return true;
}

/* ---- the kernel ------------------------------------------------------------------------------------------------ */

static LLVMValueRef
compute(mc_kb *kb, mc_opcode opcode, const LLVMValueRef *x, const LLVMValueRef *f)
{
    switch (opcode) {
    case MC_OP_ADD: return kb_fadd(kb, x[0], x[1]);
    case MC_OP_SUB: return kb_fsub(kb, x[0], x[1]);
    case MC_OP_MUL: return kb_fmul(kb, x[0], x[1]);
    case MC_OP_DIV: return kb_fdiv(kb, x[0], x[1]);
    case MC_OP_NEG: return kb_fneg(kb, x[0]);
    case MC_OP_SILU: return kb_silu(kb, x[0]);
    case MC_OP_GELU: return kb_gelu(kb, x[0]);
    case MC_OP_GELU_TANH: return kb_gelu_tanh(kb, x[0]);
    case MC_OP_RELU: return kb_relu(kb, x[0]);
    case MC_OP_RELU2: return kb_relu2(kb, x[0]);
    case MC_OP_SIGMOID: return kb_sigmoid(kb, x[0]);
    case MC_OP_TANH: return kb_tanh(kb, x[0]);
    case MC_OP_EXP: return kb_exp(kb, x[0]);
    case MC_OP_LOG: return kb_log(kb, x[0]);
    case MC_OP_LOG1P: return kb_log1p(kb, x[0]);
    case MC_OP_SQRT: return kb_sqrt(kb, x[0]);
    case MC_OP_SOFTPLUS: return kb_softplus(kb, x[0]);
    case MC_OP_FLOOR: return kb_floor(kb, x[0]);
    case MC_OP_CLAMP: return kb_fmin(kb, f[1], kb_fmax(kb, f[0], x[0]));
    case MC_OP_SOFTCAP: return kb_fmul(kb, f[0], kb_tanh(kb, kb_fdiv(kb, x[0], f[0])));
    case MC_OP_COPY: return x[0];
    default: return NULL;
    }
}

static int
count_numbers(mc_opcode opcode)
{
    return opcode == MC_OP_CLAMP ? 2 : opcode == MC_OP_SOFTCAP ? 1 : 0;
}

typedef struct pass { /* one kernel being emitted */
    mc_opcode opcode;
    int n_axes, n_operands;
    int64_t form[2];
    LLVMValueRef base[2], y; /* start of arrays; base: the splat number of a constant operand */
    LLVMValueRef sizes[MAX_AXES], numbers[2];
} pass;

static void
load_arguments(mc_kb *kb, pass *s, const mc_plan_kernel *k)
{
    *s = (pass){.opcode = (mc_opcode)k->p[0], .n_operands = (int)k->p[1], .n_axes = (int)k->p[2]};
    int n_ptrs = 0, n_floats = 0;
    for (int o = 0; o < s->n_operands; o++) {
        s->form[o] = k->p[3 + o];
        s->base[o] =
            s->form[o] == FORM_CONST ? kb_splat(kb, kb_arg_float(kb, n_floats++), kb->vl) : kb_arg_ptr(kb, n_ptrs++);
    }
    s->y = kb_arg_ptr(kb, n_ptrs);
    for (int a = 0; a < s->n_axes; a++) s->sizes[a] = kb_arg_int(kb, a);
    for (int i = 0; i < count_numbers(s->opcode); i++) {
        s->numbers[i] = kb_splat(kb, kb_arg_float(kb, n_floats + i), kb->vl);
    }
}

/* Elements begin..end-1 of a row: x[o] are the operands' row starts, or vectors when they do not vary in the row. */
static void
emit_span(mc_kb *kb, const pass *s, const LLVMValueRef *x, LLVMValueRef y, LLVMValueRef begin, LLVMValueRef end)
{
    kb_vloop v = kb_vloop_begin(kb, begin, end, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef at[2];
        for (int o = 0; o < s->n_operands; o++) {
            bool varies = s->form[o] != FORM_CONST && (s->form[o] >> (s->n_axes - 1) & 1);
            at[o] = varies ? kb_load_f32(kb, MOEC_F32, kb_elem(kb, x[o], v.i, 4), v.lanes, v.mask) : x[o];
        }
        kb_store_f32(kb, MOEC_F32, compute(kb, s->opcode, at, s->numbers), kb_elem(kb, y, v.i, 4), v.mask);
    }
}

/* Where operand o's row starts, for the indices of the outer axes. */
static LLVMValueRef
row_of(mc_kb *kb, const pass *s, int o, const LLVMValueRef *index)
{
    if (s->form[o] == FORM_CONST) return s->base[o];
    LLVMValueRef at = kb_i64(kb, 0), stride = kb_i64(kb, 1);
    for (int a = s->n_axes - 1; a >= 0; a--) {
        if (!(s->form[o] >> a & 1)) continue;
        if (a < s->n_axes - 1) at = kb_add(kb, at, kb_mul(kb, index[a], stride));
        stride = kb_mul(kb, stride, s->sizes[a]);
    }
    LLVMValueRef p = kb_elem(kb, s->base[o], at, 4);
    if (s->form[o] >> (s->n_axes - 1) & 1) return p;
    return kb_splat(kb, kb_load_f32(kb, MOEC_F32, p, 1, NULL), kb->vl);
}

/* Work is cut into pieces of at most CHUNK elements of a row, so that a few long rows keep every thread busy. */
static void
emit_rows(mc_kb *kb, const pass *s)
{
    LLVMValueRef n = s->sizes[s->n_axes - 1], outer = kb_i64(kb, 1), chunk = kb_i64(kb, CHUNK);
    for (int a = 0; a < s->n_axes - 1; a++) outer = kb_mul(kb, outer, s->sizes[a]);
    LLVMValueRef chunks = kb_udiv(kb, kb_add(kb, n, kb_i64(kb, CHUNK - 1)), chunk);
    kb_loop l = mc_rows_begin(kb, kb_mul(kb, outer, chunks));
    LLVMValueRef row = kb_udiv(kb, l.i, chunks), left = row, index[MAX_AXES], x[2];
    for (int a = s->n_axes - 2; a >= 0; a--) {
        index[a] = a ? kb_urem(kb, left, s->sizes[a]) : left;
        if (a) left = kb_udiv(kb, left, s->sizes[a]);
    }
    for (int o = 0; o < s->n_operands; o++) x[o] = row_of(kb, s, o, index);
    LLVMValueRef begin = kb_mul(kb, kb_urem(kb, l.i, chunks), chunk);
    LLVMValueRef end = kb_min(kb, n, kb_add(kb, begin, chunk));
    emit_span(kb, s, x, kb_elem(kb, s->y, kb_mul(kb, row, n), 4), begin, end);
    mc_rows_end(kb, &l);
}

static void
emit_elementwise(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    pass s;
    load_arguments(kb, &s, k);
    if (s.n_axes == 1) {
        LLVMValueRef x[2], begin, end;
        for (int o = 0; o < s.n_operands; o++) x[o] = row_of(kb, &s, o, NULL);
        kb_split(kb, s.sizes[0], GRAIN, &begin, &end);
        emit_span(kb, &s, x, s.y, begin, end);
    } else {
        emit_rows(kb, &s);
    }
    kb_kernel_end(kb);
}

void
mc_cpu_select_elementwise(mc_plan *p, const mc_op *op)
{
    const mc_value *y = mc_result(op, 0);
    merged m;
    if (!merge(p, op, &m)) return;
    for (int o = 0; o < op->n_operands; o++) {
        if (mc_operand(op, o)->type->dtype != MOEC_F32 || y->type->dtype != MOEC_F32) {
            mc_plan_refuse(p, "an operand or the result is not f32");
            return;
        }
    }
    int64_t params[5] = {op->opcode, m.n_operands, m.n_axes, m.form[0], m.form[1]};
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_elementwise, params, 5, "%s_%d_%d_%d", mc_op_info_of(op)->text,
                                         m.n_axes, (int)m.form[0], (int)m.form[1]));
    for (int o = 0; o < m.n_operands; o++) {
        if (m.form[o] != FORM_CONST) mc_plan_ptr(p, mc_operand(op, o));
    }
    mc_plan_ptr(p, y);
    for (int a = 0; a < m.n_axes; a++) mc_plan_int(p, m.sizes[a]);
    for (int o = 0; o < m.n_operands; o++) {
        if (m.form[o] == FORM_CONST) mc_plan_float(p, m.value[o]);
    }
    if (op->opcode == MC_OP_CLAMP) {
        mc_plan_float(p, mc_attr_float(op, "lo"));
        mc_plan_float(p, mc_attr_float(op, "hi"));
    }
    if (op->opcode == MC_OP_SOFTCAP) mc_plan_float(p, mc_attr_float(op, "cap"));
}

/* ---- cast ------------------------------------------------------------------------------------------------------ */

static void
emit_cast(mc_kb *kb, const mc_plan_kernel *k)
{
    moec_dtype from = (moec_dtype)k->p[0], to = (moec_dtype)k->p[1];
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef x = kb_arg_ptr(kb, 0), y = kb_arg_ptr(kb, 1), begin, end;
    kb_split(kb, kb_arg_int(kb, 0), GRAIN, &begin, &end);
    kb_vloop v = kb_vloop_begin(kb, begin, end, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef px = kb_elem(kb, x, v.i, (int64_t)moec_dtype_bytes(from));
        LLVMValueRef py = kb_elem(kb, y, v.i, (int64_t)moec_dtype_bytes(to));
        LLVMValueRef e = from == MOEC_I32 ? kb_convert(kb, kb_load_masked(kb, kb->vi, px, 4, v.mask), kb->vf)
                                          : kb_load_f32(kb, from, px, v.lanes, v.mask);
        if (to == MOEC_I32) {
            kb_store_masked(kb, kb_convert(kb, e, kb->vi), py, 4, v.mask);
        } else {
            kb_store_f32(kb, to, e, py, v.mask);
        }
    }
    kb_kernel_end(kb);
}

static bool
can_read(moec_dtype t)
{
    return t == MOEC_F32 || t == MOEC_BF16 || t == MOEC_F16 || t == MOEC_F8E4M3 || t == MOEC_F8E5M2 || t == MOEC_I32;
}

static bool
can_write(moec_dtype t)
{
    return t == MOEC_F32 || t == MOEC_BF16 || t == MOEC_F16 || t == MOEC_I32;
}

void
mc_cpu_select_cast(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    moec_dtype from = x->type->dtype, to = y->type->dtype;
    if (!can_read(from) || !can_write(to) || (from == MOEC_I32 && to == MOEC_I32)) {
        mc_plan_refuse(p, "no conversion from %s to %s", moec_dtype_name(from), moec_dtype_name(to));
        return;
    }
    int64_t params[2] = {from, to};
    mc_plan_launch(
        p, mc_plan_kernel_get(p, emit_cast, params, 2, "cast_%s_%s", moec_dtype_name(from), moec_dtype_name(to)));
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, y);
    mc_plan_int(p, mc_plan_count(p, x->type));
}
