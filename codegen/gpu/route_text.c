/* What an op of a routing chain says in its kernel: one call of row.cuh. The one idea: a table gives for every op the
 * kinds of its operands, so that one function decides whether an op can join and one writes its operands. */
#include "codegen/gpu/route_chain.h"

#include <math.h>

/* Kinds: r a row, b a row or what broadcasts to one, i ids, t a table that ids look into. */
typedef struct form {
    mc_opcode opcode;
    const char *in;
} form;

static const form forms[] = {
    {MC_OP_SOFTMAX, "r"},
    {MC_OP_SOFTMAX_GRAD, "rr"},
    {MC_OP_ADD, "bb"},
    {MC_OP_SUB, "bb"},
    {MC_OP_MUL, "bb"},
    {MC_OP_DIV, "bb"},
    {MC_OP_NEG, "r"},
    {MC_OP_SILU, "r"},
    {MC_OP_GELU, "r"},
    {MC_OP_GELU_TANH, "r"},
    {MC_OP_RELU, "r"},
    {MC_OP_RELU2, "r"},
    {MC_OP_SIGMOID, "r"},
    {MC_OP_TANH, "r"},
    {MC_OP_EXP, "r"},
    {MC_OP_LOG, "r"},
    {MC_OP_LOG1P, "r"},
    {MC_OP_SQRT, "r"},
    {MC_OP_SOFTPLUS, "r"},
    {MC_OP_FLOOR, "r"},
    {MC_OP_CLAMP, "r"},
    {MC_OP_SOFTCAP, "r"},
    {MC_OP_CAST, "r"},
    {MC_OP_UNARY_GRAD, "rr"},
    {MC_OP_ROUTE_GROUPS, "r"},
    {MC_OP_ROUTE_TOP, "rr"},
    {MC_OP_ROUTE_RENORM, "r"},
    {MC_OP_ROUTE_TAKE, "ti"},
    {MC_OP_ROUTE_SPARSEMIXER, "r"},
    {MC_OP_ROUTE_RENORM_GRAD, "rr"},
    {MC_OP_ROUTE_SCATTER, "ri"},
    {MC_OP_ROUTE_MASK, "ri"},
};

static const form *
form_of(const mc_op *op)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (forms[i].opcode == op->opcode) return &forms[i];
    return NULL;
}

/* ---- shapes ---------------------------------------------------------------------------------------------------- */

/* The constant last axis, 0 when there is none. */
static int64_t
width_of(const mc_value *v)
{
    if (v->type->rank < 1) return 0;
    mc_dim last = mc_type_last(v->type);
    return mc_dim_is_const(last) ? last.mul : 0;
}

static bool
has_rows(const mc_value *v, mc_dim rows)
{
    mc_dim n;
    return v->type->rank >= 1 && mc_type_rows(v->type, &n) && mc_dim_eq(n, rows);
}

static bool
narrow_or_f32(const mc_value *v)
{
    moec_dtype t = v->type->dtype;
    return t == MOEC_F32 || t == MOEC_BF16 || t == MOEC_F16;
}

static bool
is_row(const mc_route_chain *c, const mc_value *v, bool ids)
{
    int64_t n = width_of(v);
    bool type = ids ? v->type->dtype == MOEC_I32 : narrow_or_f32(v);
    return type && n >= 1 && n <= c->max_width && has_rows(v, c->rows);
}

/* One element for everything. */
static bool
is_scalar(const mc_value *v)
{
    mc_dim n;
    double value;
    return mc_plan_is_const(v, &value) ||
           (narrow_or_f32(v) && mc_dims_product(v->type->dims, v->type->rank, &n) && mc_dim_is_const(n) && n.mul == 1);
}

static bool
is_vector(const mc_value *v, int64_t width)
{
    return narrow_or_f32(v) && width_of(v) == width && has_rows(v, mc_dim_const(1));
}

static bool
broadcasts(const mc_route_chain *c, const mc_value *v, int64_t width)
{
    if (is_scalar(v) || is_vector(v, width)) return true;
    return is_row(c, v, false) && (width_of(v) == width || width_of(v) == 1);
}

/* ---- members --------------------------------------------------------------------------------------------------- */

static int
place_in(const mc_route_chain *c, const mc_op *op)
{
    for (size_t i = 0; i < c->ops.n; i++)
        if (c->ops.items[i] == op) return (int)i;
    return -1;
}

const mc_value *
mc_route_made(const mc_route_chain *c, const mc_value *v)
{
    while (v->def && place_in(c, v->def) >= 0) {
        if (v->def->opcode != MC_OP_RESHAPE) return v;
        v = mc_operand(v->def, 0);
    }
    return NULL;
}

/* Made before the chain begins: not by an op between its members. */
static bool
is_before(const mc_route_chain *c, const mc_value *v, const mc_op *user)
{
    while (v->def && v->def->opcode == MC_OP_RESHAPE) v = mc_operand(v->def, 0);
    if (!v->def || v->def->opcode == MC_OP_PACKED || v->def->opcode == MC_OP_CONST || !c->ops.n) return true;
    for (const mc_op *op = c->ops.items[0]; op != user; op = op->next)
        if (op == v->def) return false;
    return true;
}

static bool
operand_fits(const mc_route_chain *c, const mc_op *op, int i, char kind)
{
    const mc_value *v = mc_operand(op, i);
    if (!mc_route_made(c, v) && !is_before(c, v, op)) return false;
    switch (kind) {
    case 'r': return is_row(c, v, false);
    case 'i': return is_row(c, v, true);
    case 't': return is_row(c, v, false) || (is_vector(v, width_of(v)) && width_of(v) <= INT32_MAX);
    default: return broadcasts(c, v, width_of(mc_result(op, 0)));
    }
}

/* A reshape that leaves the rows as they are. */
static bool
is_same_rows(const mc_route_chain *c, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    return mc_route_made(c, x) && has_rows(y, c->rows) && width_of(x) == width_of(y);
}

bool
mc_route_joins(const mc_route_chain *c, const mc_op *op)
{
    const form *f = form_of(op);
    if (op->opcode == MC_OP_RESHAPE) return c->ops.n && is_same_rows(c, op);
    if (!f) return false;
    for (int i = 0; f->in[i]; i++)
        if (!operand_fits(c, op, i, f->in[i])) return false;
    for (int i = 0; i < op->n_results; i++) { /* the second result is ids */
        const mc_value *y = mc_result(op, i);
        bool narrow = i == 0 && y->type->dtype != MOEC_F32;
        if (!is_row(c, y, i == 1) || (narrow && op->opcode != MC_OP_CAST)) return false;
    }
    return true;
}

/* ---- operands -------------------------------------------------------------------------------------------------- */

static mc_str
literal(const mc_route_chain *c, double value)
{
    float x = (float)value;
    if (isnan(x)) return MC_STR("NAN");
    if (isinf(x)) return x < 0 ? MC_STR("-INFINITY") : MC_STR("INFINITY");
    return mc_strf(c->p->arena, "%af", (double)x);
}

static int
pointer(mc_route_chain *c, const mc_value *v)
{
    for (size_t i = 0; i < c->ptrs.n; i++)
        if (c->ptrs.items[i] == v) return (int)i;
    mc_vec_push(c->p->arena, &c->ptrs, v);
    return (int)c->ptrs.n - 1;
}

/* The register row that holds v from memory, read when it is not there yet. */
static mc_str
loaded(mc_route_chain *c, const mc_value *v, int64_t width)
{
    size_t i = 0;
    while (i < c->loads.n && (c->loads.items[i].value != v || c->loads.items[i].width != width)) i++;
    mc_str name = mc_strf(c->p->arena, "x%zu", i);
    if (i < c->loads.n) return name;
    mc_vec_push(c->p->arena, &c->loads, ((mc_route_load){v, width}));
    int at = pointer(c, v);
    const char *type = mc_gpu_type(v->type->dtype), *where = is_vector(v, width) ? "0" : "t";
    long long n = width;
    if (v->type->dtype == MOEC_I32)
        mc_buf_printf(&c->head, "    auto x%zu = row_load_ids<%lld>(arg<const i32>(a, %d), t);\n", i, n, at);
    else if (is_scalar(v) && width_of(v) != width)
        mc_buf_printf(&c->head, "    auto x%zu = row_fill<%lld>(to_float(*arg<const %s>(a, %d)));\n", i, n, type, at);
    else if (width_of(v) != width)
        mc_buf_printf(&c->head, "    auto x%zu = row_stretch<%lld>(row_load<1>(arg<const %s>(a, %d), t));\n", i, n,
                      type, at);
    else
        mc_buf_printf(&c->head, "    auto x%zu = row_load<%lld>(arg<const %s>(a, %d), %s);\n", i, n, type, at, where);
    return name;
}

static mc_str
made_name(const mc_route_chain *c, const mc_value *v)
{
    return mc_strf(c->p->arena, "v%d%s", place_in(c, v->def), v->index ? "_ids" : "");
}

/* Operand i as a row of this width. */
static mc_str
operand(mc_route_chain *c, const mc_op *op, int i, int64_t width)
{
    const mc_value *v = mc_operand(op, i), *made = mc_route_made(c, v);
    double value;
    if (mc_plan_is_const(v, &value))
        return mc_strf(c->p->arena, "row_fill<%lld>(%.*s)", (long long)width, MC_FMT(literal(c, value)));
    if (!made) return loaded(c, v, width);
    mc_str name = made_name(c, made);
    if (width_of(v) == width) return name;
    return mc_strf(c->p->arena, "row_stretch<%lld>(%.*s)", (long long)width, MC_FMT(name));
}

static mc_str
row_operand(mc_route_chain *c, const mc_op *op, int i)
{
    return operand(c, op, i, width_of(mc_operand(op, i)));
}

/* ---- statements ------------------------------------------------------------------------------------------------ */

/* "LO, HI" of clamp, "CAP" of softcap, with a comma before. */
static mc_str
further(mc_route_chain *c, const mc_op *op, bool clamp, bool softcap)
{
    if (softcap) return mc_strf(c->p->arena, ", %.*s", MC_FMT(literal(c, mc_attr_float(op, "cap"))));
    if (!clamp) return (mc_str){0};
    mc_str lo = literal(c, mc_attr_float(op, "lo")), hi = literal(c, mc_attr_float(op, "hi"));
    return mc_strf(c->p->arena, ", %.*s, %.*s", MC_FMT(lo), MC_FMT(hi));
}

static void
say_unary(mc_route_chain *c, const mc_op *op)
{
    mc_str x = row_operand(c, op, 0);
    mc_str more = further(c, op, op->opcode == MC_OP_CLAMP, op->opcode == MC_OP_SOFTCAP);
    mc_buf_printf(&c->body, "row_map(%.*s, [](f32 x) { return op_%s(x%.*s); });\n", MC_FMT(x), mc_op_info_of(op)->text,
                  MC_FMT(more));
}

static void
say_unary_grad(mc_route_chain *c, const mc_op *op)
{
    mc_str of = mc_attr_str(op, "of"), x = row_operand(c, op, 0), dy = row_operand(c, op, 1);
    mc_str more = further(c, op, mc_str_is(of, "clamp"), mc_str_is(of, "softcap"));
    mc_buf_printf(&c->body, "row_map(%.*s, %.*s, [](f32 x, f32 dy) { return dy * slope_%.*s(x%.*s); });\n", MC_FMT(x),
                  MC_FMT(dy), MC_FMT(of), MC_FMT(more));
}

static void
say_binary(mc_route_chain *c, const mc_op *op)
{
    int64_t width = width_of(mc_result(op, 0));
    mc_str x = operand(c, op, 0, width), y = operand(c, op, 1, width);
    mc_buf_printf(&c->body, "row_map(%.*s, %.*s, [](f32 x, f32 y) { return op_%s(x, y); });\n", MC_FMT(x), MC_FMT(y),
                  mc_op_info_of(op)->text);
}

static void
say_cast(mc_route_chain *c, const mc_op *op)
{
    mc_str x = row_operand(c, op, 0);
    const char *type = mc_gpu_type(mc_result(op, 0)->type->dtype);
    mc_buf_printf(&c->body, "row_map(%.*s, [](f32 x) { return to_float(from_float<%s>(x)); });\n", MC_FMT(x), type);
}

static void
say_renorm(mc_route_chain *c, const mc_op *op)
{
    double p = mc_attr_float(op, "p"), floor = mc_attr_float(op, "floor");
    bool grad = op->opcode == MC_OP_ROUTE_RENORM_GRAD;
    mc_str w = row_operand(c, op, 0), dy = grad ? row_operand(c, op, 1) : (mc_str){0};
    const char *rule = (float)floor > 0 ? "RENORM_FLOOR" : p == 1 ? "RENORM_SUM" : "RENORM_POWER";
    mc_buf_printf(&c->body, "row_renorm%s<%s>(%.*s%s%.*s, %.*s, %.*s, %.*s);\n", grad ? "_grad" : "", rule, MC_FMT(w),
                  grad ? ", " : "", MC_FMT(dy), MC_FMT(literal(c, mc_attr_float(op, "eps"))), MC_FMT(literal(c, p)),
                  MC_FMT(literal(c, floor)));
}

static void
say_groups(mc_route_chain *c, const mc_op *op)
{
    mc_str by = mc_attr_str(op, "by"), key = row_operand(c, op, 0);
    const char *rule = mc_str_is(by, "max") ? "BY_MAX" : mc_str_is(by, "top2") ? "BY_TOP2" : "BY_SUM";
    mc_buf_printf(&c->body, "row_groups<%lld, %lld, %s>(%.*s);\n", (long long)mc_attr_int(op, "n"),
                  (long long)mc_attr_int(op, "keep"), rule, MC_FMT(key));
}

/* Tables that the kernel does not hold anyway are read where they lie. */
static void
say_take(mc_route_chain *c, const mc_op *op)
{
    const mc_value *table = mc_operand(op, 0);
    long long width = width_of(table);
    mc_str ids = row_operand(c, op, 1);
    if (mc_route_made(c, table)) {
        mc_buf_printf(&c->body, "row_take(%.*s, %.*s);\n", MC_FMT(row_operand(c, op, 0)), MC_FMT(ids));
        return;
    }
    const char *from = is_vector(table, width) ? "" : " + t * ";
    mc_str step = *from ? mc_strf(c->p->arena, "%lld", width) : (mc_str){0};
    mc_buf_printf(&c->body, "row_look<%lld>(arg<const %s>(a, %d)%s%.*s, %.*s);\n", width,
                  mc_gpu_type(table->type->dtype), pointer(c, table), from, MC_FMT(step), MC_FMT(ids));
}

/* Two results: both are declared first. */
static void
say_choice(mc_route_chain *c, const mc_op *op, int at)
{
    long long k = width_of(mc_result(op, 0));
    mc_buf_printf(&c->body, "    row<%lld> v%d;\n    id_row<%lld> v%d_ids;\n", k, at, k, at);
    mc_str x = row_operand(c, op, 0);
    if (op->opcode == MC_OP_ROUTE_TOP)
        mc_buf_printf(&c->body, "    row_top(%.*s, %.*s, v%d, v%d_ids);\n", MC_FMT(x), MC_FMT(row_operand(c, op, 1)),
                      at, at);
    else
        mc_buf_printf(&c->body, "    row_sparsemixer(%.*s, %.*s, v%d, v%d_ids);\n", MC_FMT(x),
                      MC_FMT(literal(c, mc_attr_float(op, "eps"))), at, at);
}

static void
say_by_ids(mc_route_chain *c, const mc_op *op)
{
    mc_str w = row_operand(c, op, 0), ids = row_operand(c, op, 1);
    if (op->opcode == MC_OP_ROUTE_SCATTER)
        mc_buf_printf(&c->body, "row_scatter<%lld>(%.*s, %.*s);\n", (long long)width_of(mc_result(op, 0)), MC_FMT(w),
                      MC_FMT(ids));
    else
        mc_buf_printf(&c->body, "row_mask(%.*s, %.*s, %lld);\n", MC_FMT(w), MC_FMT(ids),
                      (long long)mc_attr_int(op, "from"));
}

void
mc_route_say(mc_route_chain *c, const mc_op *op)
{
    int at = place_in(c, op);
    if (op->opcode == MC_OP_RESHAPE) return;
    if (op->n_results == 2) {
        say_choice(c, op, at);
        return;
    }
    mc_buf_printf(&c->body, "    auto v%d = ", at);
    switch ((int)op->opcode) {
    case MC_OP_SOFTMAX: mc_buf_printf(&c->body, "row_softmax(%.*s);\n", MC_FMT(row_operand(c, op, 0))); break;
    case MC_OP_SOFTMAX_GRAD: {
        mc_str y = row_operand(c, op, 0), dy = row_operand(c, op, 1);
        mc_buf_printf(&c->body, "row_softmax_grad(%.*s, %.*s);\n", MC_FMT(y), MC_FMT(dy));
        break;
    }
    case MC_OP_ADD:
    case MC_OP_SUB:
    case MC_OP_MUL:
    case MC_OP_DIV: say_binary(c, op); break;
    case MC_OP_CAST: say_cast(c, op); break;
    case MC_OP_UNARY_GRAD: say_unary_grad(c, op); break;
    case MC_OP_ROUTE_GROUPS: say_groups(c, op); break;
    case MC_OP_ROUTE_TAKE: say_take(c, op); break;
    case MC_OP_ROUTE_RENORM:
    case MC_OP_ROUTE_RENORM_GRAD: say_renorm(c, op); break;
    case MC_OP_ROUTE_SCATTER:
    case MC_OP_ROUTE_MASK: say_by_ids(c, op); break;
    default: say_unary(c, op);
    }
}

void
mc_route_store(mc_route_chain *c, const mc_value *v)
{
    mc_str name = made_name(c, v);
    mc_buf_printf(&c->body, "    row_store(arg<%s>(a, %d), t, %.*s);\n", mc_gpu_type(v->type->dtype), pointer(c, v),
                  MC_FMT(name));
}
