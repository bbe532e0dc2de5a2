/* One line of a function: results = operation operands {attributes} : types and places. What the line means is left to
 * inference; the types it declares must be the inferred ones. */
#include <math.h>
#include <string.h>

#include "ir/edit.h"
#include "ir/infer.h"
#include "ir/read_impl.h"
#include "runtime/base/dtype.h"

enum { MAX_ATTRS = 16 };

/* The parts of one line. */
typedef struct line {
    MC_VEC(mc_moir_token) names;
    mc_values operands;
    mc_attr attrs[MAX_ATTRS];
    const mc_type *types[MC_MAX_RESULTS];
    mc_place places[MC_MAX_RESULTS];
    mc_opcode opcode;
    int n_types;
    bool broken; /* an operand or attribute is unknown, so inference has nothing to say */
} line;

bool
mc_read_define(mc_reader *r, mc_moir_token name, mc_value *value)
{
    if (mc_map_set(&r->values, name.text, value)) return true;
    r->refused = true;
    return mc_error(r->diags, name.span, MC_E0205, "%%%.*s is defined twice", MC_FMT(name.text));
}

mc_str
mc_read_hint(mc_moir_token name)
{
    return mc_moir_is_ident(name.text) ? name.text : MC_STR("");
}

static bool
read_value(mc_reader *r, mc_value **out)
{
    mc_moir_token name;
    if (!mc_read_kind(r, MC_MOIR_VALUE, "a value", &name)) return false;
    *out = mc_map_get(&r->values, name.text);
    if (*out) return true;
    r->refused = true;
    mc_error(r->diags, name.span, MC_E0201, "%%%.*s is not defined here", MC_FMT(name.text));
    return true;
}

static bool
read_operands(mc_reader *r, line *l)
{
    if (r->token.kind != MC_MOIR_VALUE && !mc_read_is(r, MC_MOIR_PUNCT, "_")) return true;
    do {
        mc_value *value = NULL;
        if (l->operands.n == MC_READ_MAX_OPERANDS) return mc_read_malformed(r, "fewer operands");
        if (!mc_read_accept(r, MC_MOIR_PUNCT, "_")) {
            if (!read_value(r, &value)) return false;
            if (!value) l->broken = true;
        }
        mc_vec_push(r->arena, &l->operands, value);
    } while (mc_read_accept(r, MC_MOIR_PUNCT, ","));
    return true;
}

static bool
read_float(mc_reader *r, double *out)
{
    bool minus = mc_read_accept(r, MC_MOIR_PUNCT, "-"); /* a number has its sign in the token; this is for -inf */
    mc_moir_token token = r->token;
    double value = token.number;
    if (token.kind == MC_MOIR_INT && !minus) {
        value = (double)token.integer;
    } else if (token.kind == MC_MOIR_IDENT && mc_str_is(token.text, "inf")) {
        value = HUGE_VAL;
    } else if (token.kind == MC_MOIR_IDENT && mc_str_is(token.text, "nan") && !minus) {
        value = (double)NAN;
    } else if (token.kind != MC_MOIR_FLOAT || minus) {
        return mc_read_malformed(r, "a number");
    }
    mc_read_advance(r);
    *out = minus ? -value : value;
    return true;
}

static bool
read_list(mc_reader *r, mc_attr *out)
{
    MC_VEC(int64_t) ints = {0};
    MC_VEC(double) floats = {0};
    if (!mc_read_punct(r, "[")) return false;
    while (!mc_read_is(r, MC_MOIR_PUNCT, "]")) {
        double number;
        mc_moir_token token = r->token;
        if (ints.n + floats.n && !mc_read_punct(r, ",")) return false;
        if (out->kind == MC_ATTR_INTS) {
            if (!mc_read_kind(r, MC_MOIR_INT, "an integer", &token)) return false;
            mc_vec_push(r->arena, &ints, token.integer);
        } else {
            if (!read_float(r, &number)) return false;
            mc_vec_push(r->arena, &floats, number);
        }
    }
    mc_read_advance(r);
    if (out->kind == MC_ATTR_INTS) {
        out->as.ints.items = ints.items;
        out->as.ints.n = ints.n;
    } else {
        out->as.floats.items = floats.items;
        out->as.floats.n = floats.n;
    }
    return true;
}

static bool
read_func_attr(mc_reader *r, line *l, mc_attr *out)
{
    mc_moir_token token;
    if (!mc_read_kind(r, MC_MOIR_FUNC, "a function", &token)) return false;
    out->as.func = mc_map_get(&r->funcs, token.text);
    if (out->as.func) return true;
    l->broken = r->refused = true;
    mc_error(r->diags, token.span, MC_E0201, "@%.*s is not defined above", MC_FMT(token.text));
    return true;
}

static bool
read_attr_value(mc_reader *r, line *l, mc_attr *out)
{
    mc_moir_token token = r->token;
    switch (out->kind) {
    case MC_ATTR_INT:
        if (!mc_read_kind(r, MC_MOIR_INT, "an integer", &token)) return false;
        out->as.i = token.integer;
        return true;
    case MC_ATTR_FLOAT: return read_float(r, &out->as.f);
    case MC_ATTR_BOOL:
        out->as.b = mc_read_is(r, MC_MOIR_IDENT, "true");
        if (!out->as.b && !mc_read_is(r, MC_MOIR_IDENT, "false")) return mc_read_malformed(r, "true or false");
        mc_read_advance(r);
        return true;
    case MC_ATTR_STR:
        if (!mc_read_kind(r, MC_MOIR_STRING, "a string", &token)) return false;
        out->as.s = token.text;
        return true;
    case MC_ATTR_DTYPE:
        out->as.dtype = token.kind == MC_MOIR_IDENT ? mc_dtype_parse(token.text) : MOEC_DTYPE_NONE;
        if (out->as.dtype == MOEC_DTYPE_NONE) return mc_read_malformed(r, "an element type");
        mc_read_advance(r);
        return true;
    case MC_ATTR_FUNC: return read_func_attr(r, l, out);
    case MC_ATTR_INTS:
    case MC_ATTR_FLOATS: return read_list(r, out);
    case MC_ATTR_NONE: break;
    }
    return mc_read_malformed(r, "a value");
}

static bool
read_attrs(mc_reader *r, line *l)
{
    if (!mc_read_accept(r, MC_MOIR_PUNCT, "{")) return true;
    const mc_op_info *info = &mc_op_infos[l->opcode];
    do {
        mc_moir_token name;
        if (!mc_read_kind(r, MC_MOIR_IDENT, "an attribute", &name)) return false;
        int i = mc_attr_index(l->opcode, name.text);
        if (i < 0 || i >= MAX_ATTRS || l->attrs[i].kind != MC_ATTR_NONE) {
            r->lexer.failed = true;
            const char *what = i < 0 ? "has no attribute" : "has twice the attribute";
            return mc_error(r->diags, name.span, MC_E0404, "%s %s %.*s", info->text, what, MC_FMT(name.text));
        }
        l->attrs[i].kind = info->attrs[i].kind;
        if (!mc_read_punct(r, "=") || !read_attr_value(r, l, &l->attrs[i])) return false;
    } while (mc_read_accept(r, MC_MOIR_PUNCT, ","));
    return mc_read_punct(r, "}");
}

static bool
read_view(mc_reader *r, line *l, mc_place *out)
{
    mc_moir_token token;
    out->kind = MC_PLACE_VIEW;
    if (!read_value(r, &out->base)) return false;
    if (!out->base) l->broken = true;
    if (mc_read_accept(r, MC_MOIR_PUNCT, "+")) {
        if (!mc_read_kind(r, MC_MOIR_INT, "a number", &token)) return false;
        out->offset = token.integer;
    }
    if (mc_read_accept(r, MC_MOIR_IDENT, "stride")) {
        if (!mc_read_kind(r, MC_MOIR_INT, "a number", &token)) return false;
        out->row_stride = token.integer;
    }
    if (out->offset >= 0 && out->row_stride >= 0) return true;
    r->lexer.failed = true;
    return mc_error(r->diags, token.span, MC_E0401, "a view does not go backwards");
}

static bool
read_place(mc_reader *r, line *l, mc_place *out)
{
    static const struct {
        const char *text;
        mc_place_kind kind;
    } kinds[] = {{"slot", MC_PLACE_SLOT},     {"arg", MC_PLACE_ARG},     {"result", MC_PLACE_RESULT},
                 {"weight", MC_PLACE_WEIGHT}, {"state", MC_PLACE_STATE}, {"const", MC_PLACE_CONST}};
    if (!mc_read_accept(r, MC_MOIR_IDENT, "at")) return true;
    if (mc_read_accept(r, MC_MOIR_IDENT, "view")) return read_view(r, l, out);
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (!mc_read_accept(r, MC_MOIR_IDENT, kinds[i].text)) continue;
        out->kind = kinds[i].kind;
        return out->kind == MC_PLACE_CONST || mc_read_index(r, &out->index);
    }
    return mc_read_malformed(r, "a place");
}

static bool
read_result_types(mc_reader *r, line *l)
{
    if (!mc_read_accept(r, MC_MOIR_PUNCT, ":")) return true;
    do {
        if (l->n_types == MC_MAX_RESULTS) return mc_read_malformed(r, "fewer results");
        if (!mc_read_type(r, &l->types[l->n_types])) return false;
        if (!read_place(r, l, &l->places[l->n_types])) return false;
        l->n_types++;
    } while (mc_read_accept(r, MC_MOIR_PUNCT, ","));
    return true;
}

static bool
read_opcode(mc_reader *r, line *l)
{
    mc_moir_token token;
    if (!mc_read_kind(r, MC_MOIR_IDENT, "an operation", &token)) return false;
    l->opcode = mc_opcode_find(token.text);
    if (l->opcode < MC_N_OPCODES) return true;
    mc_str names[MC_N_OPCODES];
    for (int i = 0; i < MC_N_OPCODES; i++) names[i] = mc_str_of(mc_op_infos[i].text);
    mc_str near = mc_str_nearest(token.text, names, MC_N_OPCODES);
    r->lexer.failed = true;
    if (near.len) {
        return mc_error(r->diags, token.span, MC_E0402, "'%.*s' is not an operation; did you mean '%.*s'?",
                        MC_FMT(token.text), MC_FMT(near));
    }
    return mc_error(r->diags, token.span, MC_E0402, "'%.*s' is not an operation", MC_FMT(token.text));
}

/* Inference on what was read; the declared types must be the inferred ones. */
static void
check_line(mc_reader *r, const line *l, mc_span span)
{
    mc_infer in = {.module = r->module, .opcode = l->opcode, .operands = l->operands.items, .span = span};
    in.n_operands = (int)l->operands.n;
    in.attrs = l->attrs;
    in.diags = r->diags;
    in.n_results = l->n_types;
    memcpy(in.results, l->types, sizeof in.results);
    if (!mc_infer_run(&in)) {
        r->refused = true;
        return;
    }
    if (in.n_results != l->n_types) {
        r->refused = true;
        mc_error(r->diags, span, MC_E0403, "%s: %d results, but %d are declared", mc_op_infos[l->opcode].text,
                 in.n_results, l->n_types);
        return;
    }
    for (int i = 0; i < l->n_types; i++) {
        if (in.results[i] == l->types[i]) continue;
        r->refused = true;
        mc_error(r->diags, span, MC_E0406, "%s: result %d is %s, but is declared as %s", mc_op_infos[l->opcode].text,
                 i + 1, mc_type_text(r->module, in.results[i], r->arena).data,
                 mc_type_text(r->module, l->types[i], r->arena).data);
    }
}

bool
mc_read_line(mc_reader *r)
{
    line *l = MC_NEW(r->arena, line);
    mc_span begin = r->token.span;
    mc_moir_token name;
    if (r->token.kind == MC_MOIR_VALUE) {
        do {
            if (l->names.n == MC_MAX_RESULTS) return mc_read_malformed(r, "fewer results");
            if (!mc_read_kind(r, MC_MOIR_VALUE, "a value", &name)) return false;
            mc_vec_push(r->arena, &l->names, name);
        } while (mc_read_accept(r, MC_MOIR_PUNCT, ","));
        if (!mc_read_punct(r, "=")) return false;
    }
    if (!read_opcode(r, l) || !read_operands(r, l) || !read_attrs(r, l) || !read_result_types(r, l)) return false;
    mc_span span = {begin.file, begin.begin, r->last_end};
    if (l->names.n != (size_t)l->n_types) {
        r->lexer.failed = true;
        return mc_error(r->diags, span, MC_E0403, "%zu names for %d results", l->names.n, l->n_types);
    }
    if (!l->broken) check_line(r, l, span);
    mc_op *op =
        mc_op_create(r->module, l->opcode, l->operands.items, (int)l->operands.n, l->types, l->n_types, l->attrs, span);
    mc_op_insert_before(r->func, NULL, op);
    for (int i = 0; i < l->n_types; i++) {
        op->results[i].place = l->places[i];
        op->results[i].name = mc_str_dup(r->module->arena, mc_read_hint(l->names.items[i]));
        mc_read_define(r, l->names.items[i], &op->results[i]);
    }
    return !r->diags->too_many;
}
