/* Runs inference: first what the table alone can say (operand count, classes, attributes), then the op's own function.
 * A refusal names the op and shows the operand types in a note, so that the messages themselves stay short. */
#include "ir/infer_impl.h"

#include <math.h>
#include <stdarg.h>

#include "runtime/base/dtype.h"

const char *const mc_in_act_names[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", NULL};

int64_t
mc_in_int(const mc_infer *in, const char *name)
{
    return mc_attr_at(in->opcode, in->attrs, name, MC_ATTR_INT).as.i;
}

double
mc_in_float(const mc_infer *in, const char *name)
{
    return mc_attr_at(in->opcode, in->attrs, name, MC_ATTR_FLOAT).as.f;
}

mc_str
mc_in_str(const mc_infer *in, const char *name)
{
    return mc_attr_at(in->opcode, in->attrs, name, MC_ATTR_STR).as.s;
}

mc_func *
mc_in_func(const mc_infer *in, const char *name)
{
    return mc_attr_at(in->opcode, in->attrs, name, MC_ATTR_FUNC).as.func;
}

const mc_type *
mc_in_type(const mc_infer *in, int i)
{
    return i < in->n_operands && in->operands[i] ? in->operands[i]->type : NULL;
}

bool
mc_in_give(mc_infer *in, const mc_type *type)
{
    in->results[in->n_results++] = type;
    return true;
}

bool
mc_in_give_dims(mc_infer *in, moec_dtype dtype, const mc_dim *dims, int rank)
{
    return mc_in_give(in, mc_type_get(in->module, dtype, dims, rank));
}

moec_dtype
mc_in_to(const mc_infer *in, moec_dtype otherwise)
{
    moec_dtype to = mc_attr_at(in->opcode, in->attrs, "to", MC_ATTR_DTYPE).as.dtype;
    return to == MOEC_DTYPE_NONE ? otherwise : to;
}

bool
mc_in_give_to(mc_infer *in, const mc_type *type)
{
    moec_dtype to = mc_in_to(in, type->dtype);
    if (to != MOEC_F32 && to != MOEC_BF16 && to != MOEC_F16 && to != type->dtype)
        return mc_in_refuse(in, MC_E0404, "to is %s: a result is f32, bf16 or f16", moec_dtype_name(to));
    return mc_in_give(in, mc_type_with_dtype(in->module, type, to));
}

static const char *
port_name(const mc_infer *in, int i)
{
    const mc_op_info *info = &mc_op_infos[in->opcode];
    int last = info->n_operands - 1;
    return info->operands[i < last ? i : last].name;
}

bool
mc_in_refuse(mc_infer *in, mc_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    mc_str text = mc_strfv(in->diags->arena, format, args);
    va_end(args);
    mc_error(in->diags, in->span, code, "%s: %.*s", mc_op_infos[in->opcode].text, MC_FMT(text));
    enum { SHOWN = 16 };
    mc_buf types = {0};
    for (int i = 0; i < in->n_operands && i < SHOWN; i++) {
        if (!in->operands[i] || mc_op_infos[in->opcode].n_operands == 0) continue;
        mc_buf_printf(&types, "%s%s is ", types.len ? ", " : "", port_name(in, i));
        mc_type_print(in->module, in->operands[i]->type, &types);
    }
    if (types.len) mc_note(in->diags, in->span, "%s", types.data);
    mc_buf_fini(&types);
    return false;
}

const char *
mc_in_shape_text(const mc_infer *in, const mc_dim *dims, int rank)
{
    mc_buf text = {0};
    mc_buf_putc(&text, '[');
    for (int i = 0; i < rank; i++) {
        if (i) mc_buf_puts(&text, ", ");
        mc_dim_print(in->module, dims[i], &text);
    }
    mc_buf_putc(&text, ']');
    const char *copy = mc_str_dup(in->diags->arena, mc_buf_view(&text)).data;
    mc_buf_fini(&text);
    return copy;
}

const char *
mc_in_dim_text(const mc_infer *in, mc_dim d)
{
    mc_buf text = {0};
    mc_dim_print(in->module, d, &text);
    const char *copy = mc_str_dup(in->diags->arena, mc_buf_view(&text)).data;
    mc_buf_fini(&text);
    return copy;
}

bool
mc_in_want_rank(mc_infer *in, int i, int least, int most)
{
    const mc_type *t = mc_in_type(in, i);
    if (!t || (t->rank >= least && t->rank <= most)) return true;
    const char *bound = least == most ? "" : t->rank < least ? "at least " : "at most ";
    int n = t->rank < least ? least : most;
    return mc_in_refuse(in, MC_E0310, "%s must have %s%d %s, but has %d", port_name(in, i), bound, n,
                        n == 1 ? "axis" : "axes", t->rank);
}

bool
mc_in_want_shape(mc_infer *in, int i, const mc_dim *dims, int rank)
{
    const mc_type *t = mc_in_type(in, i);
    if (!t) return true;
    bool same = t->rank == rank;
    for (int a = 0; same && a < rank; a++) same = mc_dim_eq(t->dims[a], dims[a]);
    if (same) return true;
    return mc_in_refuse(in, MC_E0310, "%s must have the shape %s, but has %s", port_name(in, i),
                        mc_in_shape_text(in, dims, rank), mc_in_shape_text(in, t->dims, t->rank));
}

bool
mc_in_want_vector(mc_infer *in, int i, mc_dim n)
{
    return mc_in_want_shape(in, i, &n, 1);
}

bool
mc_in_want_choice(mc_infer *in, const char *attr, const char *const *choices)
{
    mc_str value = mc_in_str(in, attr);
    mc_buf list = {0};
    for (int i = 0; choices[i]; i++) {
        if (mc_str_is(value, choices[i])) {
            mc_buf_fini(&list);
            return true;
        }
        mc_buf_printf(&list, "%s%s", i ? ", " : "", choices[i]);
    }
    mc_in_refuse(in, MC_E0404, "%s = \"%.*s\" is none of: %s", attr, MC_FMT(value), list.data);
    mc_buf_fini(&list);
    return false;
}

bool
mc_in_want_float(mc_infer *in, const char *attr, double least, bool or_equal)
{
    double value = mc_in_float(in, attr);
    if (isfinite(value) && (value > least || (or_equal && value == least))) return true;
    return mc_in_refuse(in, MC_E0404, "%s = %g must be finite and %s %g", attr, value, or_equal ? "at least" : "above",
                        least);
}

bool
mc_in_want_int(mc_infer *in, const char *attr, int64_t least, int64_t most)
{
    int64_t value = mc_in_int(in, attr);
    if (value >= least && value <= most) return true;
    if (value < least) {
        return mc_in_refuse(in, MC_E0404, "%s = %lld must be at least %lld", attr, (long long)value, (long long)least);
    }
    return mc_in_refuse(in, MC_E0404, "%s = %lld must be at most %lld", attr, (long long)value, (long long)most);
}

bool
mc_in_want_choices_of(mc_infer *in, int i, int j, const mc_type *lead)
{
    const mc_type *weights = mc_in_type(in, i);
    if (!mc_in_want_rank(in, i, 1, MC_MAX_RANK)) return false;
    if (!mc_in_want_shape(in, j, weights->dims, weights->rank)) return false;
    if (!lead) return true;
    mc_dim dims[MC_MAX_RANK];
    if (lead->rank < 1) return mc_in_refuse(in, MC_E0310, "x must have a last axis");
    for (int a = 0; a < lead->rank; a++) dims[a] = lead->dims[a];
    dims[lead->rank - 1] = mc_type_last(weights);
    return mc_in_want_shape(in, i, dims, lead->rank);
}

int
mc_in_want_axis(mc_infer *in, int64_t axis, int rank)
{
    if (axis >= -rank && axis < rank) return (int)(axis < 0 ? axis + rank : axis);
    mc_in_refuse(in, MC_E0404, "axis %lld of a tensor of %d axes", (long long)axis, rank);
    return -1;
}

bool
mc_in_func_results(mc_infer *in, const mc_func *f, const mc_op **out_return)
{
    const mc_op *end = f->last;
    *out_return = end;
    bool good = end && end->opcode == MC_OP_RETURN;
    for (int i = 0; good && i < end->n_operands; i++) good = end->operands[i].value != NULL;
    if (good) return true;
    return mc_in_refuse(in, MC_E0403, "@%.*s does not end with a whole return", MC_FMT(f->name));
}

bool
mc_in_want_scale(mc_infer *in, int i, const mc_type *w)
{
    enum { BLOCK = 128 };
    if (!mc_in_type(in, i)) return true;
    if (w->dtype != MOEC_F8E4M3) {
        return mc_in_refuse(in, MC_E0318, "%s belongs to a weight in f8e4m3, not in %s", port_name(in, i),
                            moec_dtype_name(w->dtype));
    }
    mc_dim dims[MC_MAX_RANK];
    for (int a = 0; a < w->rank; a++) {
        dims[a] = w->dims[a];
        if (a < w->rank - 2) continue;
        if (!mc_dim_is_const(w->dims[a])) return mc_in_refuse(in, MC_E0310, "a weight with scales has constant axes");
        dims[a] = mc_dim_const((w->dims[a].mul + BLOCK - 1) / BLOCK);
    }
    return mc_in_want_shape(in, i, dims, w->rank);
}

bool
mc_in_packed_pair(const mc_infer *in, int gate, int up)
{
    const mc_value *v = in->operands[gate];
    return v == in->operands[up] && v->def && v->def->opcode == MC_OP_PACKED &&
           mc_str_is(mc_attr_str(v->def, "layout"), "pair_panels");
}

static const char *
class_text(mc_class cls)
{
    switch (cls) {
    case MC_CLASS_F: return "a float tensor (not FP8)";
    case MC_CLASS_I: return "an integer tensor";
    case MC_CLASS_W: return "a float weight";
    case MC_CLASS_A: break;
    }
    return "a tensor";
}

static bool
in_class(const mc_type *t, mc_class cls)
{
    bool is_fp8 = t->dtype == MOEC_F8E4M3 || t->dtype == MOEC_F8E5M2;
    switch (cls) {
    case MC_CLASS_F: return mc_type_is_float(t) && !is_fp8;
    case MC_CLASS_I: return !mc_type_is_float(t) && t->dtype != MOEC_BOOL;
    case MC_CLASS_W: return mc_type_is_float(t);
    case MC_CLASS_A: break;
    }
    return true;
}

static bool
check_operands(mc_infer *in)
{
    const mc_op_info *info = &mc_op_infos[in->opcode];
    int n = info->n_operands;
    bool any = n && info->operands[n - 1].arity == MC_ARITY_ANY;
    if (in->n_operands > n && !any) {
        return mc_in_refuse(in, MC_E0403, "%d operands, but it takes at most %d", in->n_operands, n);
    }
    int total = in->n_operands > n ? in->n_operands : n;
    for (int i = 0; i < total; i++) {
        const mc_port_info *port = &info->operands[i < n ? i : n - 1];
        const mc_type *t = mc_in_type(in, i);
        if (!t && port->arity == MC_ARITY_ONE) return mc_in_refuse(in, MC_E0403, "operand %s is missing", port->name);
        if (!t && port->arity == MC_ARITY_ANY && i < in->n_operands) {
            return mc_in_refuse(in, MC_E0403, "operand %d of %s is absent", i + 1, port->name);
        }
        if (t && !in_class(t, port->cls)) {
            return mc_in_refuse(in, MC_E0403, "operand %s must be %s, not %s", port->name, class_text(port->cls),
                                moec_dtype_name(t->dtype));
        }
    }
    return true;
}

static bool
check_attrs(mc_infer *in)
{
    const mc_op_info *info = &mc_op_infos[in->opcode];
    for (int i = 0; i < info->n_attrs; i++) {
        const mc_attr_info *attr = &info->attrs[i];
        mc_attr_kind kind = in->attrs ? in->attrs[i].kind : MC_ATTR_NONE;
        if (kind == MC_ATTR_NONE && attr->required) {
            return mc_in_refuse(in, MC_E0404, "attribute %s is missing", attr->name);
        }
        bool fits = kind == MC_ATTR_NONE || kind == attr->kind;
        if (fits && kind == MC_ATTR_FUNC) fits = in->attrs[i].as.func != NULL;
        if (!fits) return mc_in_refuse(in, MC_E0404, "attribute %s has a value of the wrong kind", attr->name);
    }
    return true;
}

static bool
check_results(mc_infer *in)
{
    const mc_op_info *info = &mc_op_infos[in->opcode];
    bool any = info->n_results && info->results[info->n_results - 1].arity == MC_ARITY_ANY;
    if (in->n_results != info->n_results && !any) {
        return mc_in_refuse(in, MC_E0403, "%d results, but it has %d", in->n_results, info->n_results);
    }
    for (int i = 0; i < in->n_results; i++) {
        const mc_port_info *port = &info->results[i < info->n_results ? i : info->n_results - 1];
        if (in_class(in->results[i], port->cls)) continue;
        return mc_in_refuse(in, MC_E0403, "result %s must be %s, not %s", port->name, class_text(port->cls),
                            moec_dtype_name(in->results[i]->dtype));
    }
    return true;
}

bool
mc_infer_run(mc_infer *in)
{
    const mc_op_info *info = &mc_op_infos[in->opcode];
    bool typed = (info->traits & MC_TRAIT_TYPED) != 0;
    if (!typed) in->n_results = 0;
    if (!check_operands(in) || !check_attrs(in)) return false;
    if (typed && !check_results(in)) return false;
    return info->infer(in) && (typed || check_results(in));
}
