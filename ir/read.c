/* The text form, in. One loop over tokens, no recursion, and nothing is allocated from a number in the text.
 *
 * A malformed text stops the reader at once. A line that can be parsed but means nothing (an unknown value, a refused
 * op) is reported, its results are taken as declared, and reading goes on, so that one run shows several mistakes. */
#include "ir/print.h"

#include <math.h>
#include <string.h>

#include "ir/edit.h"
#include "ir/infer.h"
#include "ir/moir.h"
#include "runtime/base/dtype.h"

enum { MAX_OPERANDS = 4096, MAX_ATTRS = 16, MAX_META = 1024 };
static const int64_t max_extent = (int64_t)1 << 48;

typedef struct reader {
    mc_moir_lexer lexer;
    mc_moir_token token; /* the one to be read next */
    uint32_t last_end;   /* where the token before it ended */
    mc_arena *arena;
    mc_diags *diags;
    mc_module *module;
    mc_map funcs, values; /* values: of the function being read */
    mc_func *func;
    bool refused; /* something was reported that did not stop the reading */
} reader;

typedef MC_VEC(mc_value *) value_list;

/* The parts of one line. */
typedef struct line {
    MC_VEC(mc_moir_token) names;
    value_list operands;
    mc_attr attrs[MAX_ATTRS];
    const mc_type *types[MC_MAX_RESULTS];
    mc_place places[MC_MAX_RESULTS];
    mc_opcode opcode;
    int n_types;
    bool broken; /* an operand or attribute is unknown, so inference has nothing to say */
} line;

static void
advance(reader *r)
{
    r->last_end = r->token.span.end;
    r->token = mc_moir_next(&r->lexer);
}

static bool
is(const reader *r, mc_moir_kind kind, const char *text)
{
    return r->token.kind == kind && mc_str_is(r->token.text, text);
}

static bool
accept(reader *r, mc_moir_kind kind, const char *text)
{
    if (!is(r, kind, text)) return false;
    advance(r);
    return true;
}

/* Stops the reading; the lexer's own message, if there is one, is enough. */
static bool
malformed(reader *r, const char *wanted)
{
    if (r->lexer.failed) return false;
    r->lexer.failed = true;
    if (r->token.kind == MC_MOIR_END) {
        return mc_error(r->diags, r->token.span, MC_E0401, "expected %s, but the text ends", wanted);
    }
    mc_str found = mc_str_slice(r->token.text, 0, 40);
    return mc_error(r->diags, r->token.span, MC_E0401, "expected %s, but found '%.*s'", wanted, MC_FMT(found));
}

static bool
expect(reader *r, mc_moir_kind kind, const char *text)
{
    if (accept(r, kind, text)) return true;
    return malformed(r, mc_strf(r->arena, "'%s'", text).data);
}

static bool
expect_kind(reader *r, mc_moir_kind kind, const char *wanted, mc_moir_token *out)
{
    *out = r->token;
    if (r->token.kind != kind) return malformed(r, wanted);
    advance(r);
    return true;
}

static bool
expect_punct(reader *r, const char *text)
{
    return expect(r, MC_MOIR_PUNCT, text);
}

static bool
read_index(reader *r, int32_t *out)
{
    mc_moir_token token;
    if (!expect_kind(r, MC_MOIR_INT, "a number", &token)) return false;
    *out = (int32_t)token.integer;
    if (token.integer >= 0 && token.integer <= INT32_MAX) return true;
    r->lexer.failed = true;
    return mc_error(r->diags, token.span, MC_E0401, "this index is out of range");
}

/* One factor of a dimension: a number or a symbol. */
static bool
read_factor(reader *r, mc_dim *out)
{
    mc_moir_token token = r->token;
    if (token.kind == MC_MOIR_INT) {
        advance(r);
        *out = mc_dim_const(token.integer);
        return true;
    }
    if (!expect_kind(r, MC_MOIR_IDENT, "a dimension", &token)) return false;
    for (int i = 0; i < r->module->n_syms; i++) {
        if (!mc_str_eq(r->module->syms[i].name, token.text)) continue;
        *out = mc_dim_sym(i);
        return true;
    }
    r->lexer.failed = true;
    return mc_error(r->diags, token.span, MC_E0201, "'%.*s' is not declared with dim", MC_FMT(token.text));
}

static bool
read_dim(reader *r, mc_dim *out)
{
    mc_span begin = r->token.span;
    if (!read_factor(r, out)) return false;
    while (accept(r, MC_MOIR_PUNCT, "*")) {
        mc_dim factor;
        if (!read_factor(r, &factor)) return false;
        if (mc_dim_mul(*out, factor, out)) continue;
        r->lexer.failed = true;
        return mc_error(r->diags, begin, MC_E0314, "a product of more than %d symbols, or too large", MC_DIM_SYMS);
    }
    bool minus = is(r, MC_MOIR_PUNCT, "-");
    if (minus || is(r, MC_MOIR_PUNCT, "+")) {
        mc_moir_token token;
        advance(r);
        if (!expect_kind(r, MC_MOIR_INT, "a number", &token)) return false;
        bool fits = token.integer > 0 && token.integer <= max_extent && !mc_dim_is_const(*out);
        if (!fits) {
            r->lexer.failed = true;
            return mc_error(r->diags, token.span, MC_E0314, "only a moderate positive number is added to symbols");
        }
        out->add = minus ? -token.integer : token.integer;
    }
    if (out->mul >= 1 && out->mul <= max_extent) return true;
    r->lexer.failed = true;
    return mc_error(r->diags, begin, MC_E0319, "a dimension must be at least 1 and at most 2^48");
}

static bool
read_type(reader *r, const mc_type **out)
{
    mc_moir_token token;
    if (!expect_kind(r, MC_MOIR_IDENT, "a type", &token)) return false;
    moec_dtype dtype = mc_dtype_parse(token.text);
    mc_dim dims[MC_MAX_RANK];
    int rank = 0;
    int64_t n = 1;
    if (dtype == MOEC_DTYPE_NONE) {
        r->lexer.failed = true;
        return mc_error(r->diags, token.span, MC_E0401, "'%.*s' is not an element type", MC_FMT(token.text));
    }
    if (accept(r, MC_MOIR_PUNCT, "[")) {
        while (!is(r, MC_MOIR_PUNCT, "]")) {
            if (rank && !expect_punct(r, ",")) return false;
            mc_span at = r->token.span;
            if (rank == MC_MAX_RANK) return malformed(r, "at most 6 dimensions");
            if (!read_dim(r, &dims[rank])) return false;
            if (__builtin_mul_overflow(n, dims[rank].mul, &n) || n > max_extent) {
                r->lexer.failed = true;
                return mc_error(r->diags, at, MC_E0319, "a tensor of more than 2^48 elements");
            }
            rank++;
        }
        advance(r);
    }
    *out = mc_type_get(r->module, dtype, dims, rank);
    return true;
}

static bool
read_symbol(reader *r)
{
    mc_moir_token name, number;
    if (!expect_kind(r, MC_MOIR_IDENT, "the name of a dimension", &name)) return false;
    int before = r->module->n_syms, at = mc_symbol_get(r->module, name.text);
    if (at < 0 || at < before) {
        r->lexer.failed = true;
        if (at < 0) return mc_error(r->diags, name.span, MC_E0319, "more than %d dimensions", MC_MAX_SYMS);
        return mc_error(r->diags, name.span, MC_E0205, "'%.*s' is declared twice", MC_FMT(name.text));
    }
    mc_symbol *sym = &r->module->syms[at];
    if (!accept(r, MC_MOIR_IDENT, "in")) return true;
    if (!expect_kind(r, MC_MOIR_INT, "a number", &number) || !expect_punct(r, "..")) return false;
    sym->lo = number.integer;
    if (r->token.kind == MC_MOIR_INT) {
        sym->hi = r->token.integer;
        advance(r);
    }
    if (sym->lo >= 0 && (sym->hi == 0 || sym->hi >= sym->lo) && sym->hi <= max_extent) return true;
    r->lexer.failed = true;
    return mc_error(r->diags, number.span, MC_E0401, "this is not a range");
}

static bool
read_meta(reader *r)
{
    mc_moir_token key, value;
    if (!expect_kind(r, MC_MOIR_STRING, "a string", &key) || !expect_punct(r, "=")) return false;
    if (!expect_kind(r, MC_MOIR_STRING, "a string", &value)) return false;
    if (r->module->metas.n == MAX_META) return malformed(r, "fewer metas");
    mc_module_set_meta(r->module, key.text, value.text);
    return true;
}

/* ---- functions ---- */

static bool
define(reader *r, mc_moir_token name, mc_value *value)
{
    if (mc_map_set(&r->values, name.text, value)) return true;
    r->refused = true;
    return mc_error(r->diags, name.span, MC_E0205, "%%%.*s is defined twice", MC_FMT(name.text));
}

/* Numbers are given anew when printed; only real names are kept. */
static mc_str
hint_of(mc_moir_token name)
{
    return mc_moir_is_ident(name.text) ? name.text : MC_STR("");
}

static bool
read_value(reader *r, mc_value **out)
{
    mc_moir_token name;
    if (!expect_kind(r, MC_MOIR_VALUE, "a value", &name)) return false;
    *out = mc_map_get(&r->values, name.text);
    if (*out) return true;
    r->refused = true;
    mc_error(r->diags, name.span, MC_E0201, "%%%.*s is not defined here", MC_FMT(name.text));
    return true;
}

static bool
read_operands(reader *r, line *l)
{
    if (r->token.kind != MC_MOIR_VALUE && !is(r, MC_MOIR_PUNCT, "_")) return true;
    do {
        mc_value *value = NULL;
        if (l->operands.n == MAX_OPERANDS) return malformed(r, "fewer operands");
        if (!accept(r, MC_MOIR_PUNCT, "_")) {
            if (!read_value(r, &value)) return false;
            if (!value) l->broken = true;
        }
        mc_vec_push(r->arena, &l->operands, value);
    } while (accept(r, MC_MOIR_PUNCT, ","));
    return true;
}

static bool
read_float(reader *r, double *out)
{
    bool minus = accept(r, MC_MOIR_PUNCT, "-"); /* a number has its sign in the token; this is for -inf */
    mc_moir_token token = r->token;
    double value = token.number;
    if (token.kind == MC_MOIR_INT && !minus) {
        value = (double)token.integer;
    } else if (token.kind == MC_MOIR_IDENT && mc_str_is(token.text, "inf")) {
        value = HUGE_VAL;
    } else if (token.kind == MC_MOIR_IDENT && mc_str_is(token.text, "nan") && !minus) {
        value = (double)NAN;
    } else if (token.kind != MC_MOIR_FLOAT || minus) {
        return malformed(r, "a number");
    }
    advance(r);
    *out = minus ? -value : value;
    return true;
}

static bool
read_list(reader *r, mc_attr *out)
{
    MC_VEC(int64_t) ints = {0};
    MC_VEC(double) floats = {0};
    if (!expect_punct(r, "[")) return false;
    while (!is(r, MC_MOIR_PUNCT, "]")) {
        double number;
        mc_moir_token token = r->token;
        if (ints.n + floats.n && !expect_punct(r, ",")) return false;
        if (out->kind == MC_ATTR_INTS) {
            if (!expect_kind(r, MC_MOIR_INT, "an integer", &token)) return false;
            mc_vec_push(r->arena, &ints, token.integer);
        } else {
            if (!read_float(r, &number)) return false;
            mc_vec_push(r->arena, &floats, number);
        }
    }
    advance(r);
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
read_func_attr(reader *r, line *l, mc_attr *out)
{
    mc_moir_token token;
    if (!expect_kind(r, MC_MOIR_FUNC, "a function", &token)) return false;
    out->as.func = mc_map_get(&r->funcs, token.text);
    if (out->as.func) return true;
    l->broken = r->refused = true;
    mc_error(r->diags, token.span, MC_E0201, "@%.*s is not defined above", MC_FMT(token.text));
    return true;
}

static bool
read_attr_value(reader *r, line *l, mc_attr *out)
{
    mc_moir_token token = r->token;
    switch (out->kind) {
    case MC_ATTR_INT:
        if (!expect_kind(r, MC_MOIR_INT, "an integer", &token)) return false;
        out->as.i = token.integer;
        return true;
    case MC_ATTR_FLOAT: return read_float(r, &out->as.f);
    case MC_ATTR_BOOL:
        out->as.b = is(r, MC_MOIR_IDENT, "true");
        if (!out->as.b && !is(r, MC_MOIR_IDENT, "false")) return malformed(r, "true or false");
        advance(r);
        return true;
    case MC_ATTR_STR:
        if (!expect_kind(r, MC_MOIR_STRING, "a string", &token)) return false;
        out->as.s = token.text;
        return true;
    case MC_ATTR_DTYPE:
        out->as.dtype = token.kind == MC_MOIR_IDENT ? mc_dtype_parse(token.text) : MOEC_DTYPE_NONE;
        if (out->as.dtype == MOEC_DTYPE_NONE) return malformed(r, "an element type");
        advance(r);
        return true;
    case MC_ATTR_FUNC: return read_func_attr(r, l, out);
    case MC_ATTR_INTS:
    case MC_ATTR_FLOATS: return read_list(r, out);
    case MC_ATTR_NONE: break;
    }
    return malformed(r, "a value");
}

static bool
read_attrs(reader *r, line *l)
{
    if (!accept(r, MC_MOIR_PUNCT, "{")) return true;
    const mc_op_info *info = &mc_op_infos[l->opcode];
    do {
        mc_moir_token name;
        if (!expect_kind(r, MC_MOIR_IDENT, "an attribute", &name)) return false;
        int i = mc_attr_index(l->opcode, name.text);
        if (i < 0 || i >= MAX_ATTRS || l->attrs[i].kind != MC_ATTR_NONE) {
            r->lexer.failed = true;
            const char *what = i < 0 ? "has no attribute" : "has twice the attribute";
            return mc_error(r->diags, name.span, MC_E0404, "%s %s %.*s", info->text, what, MC_FMT(name.text));
        }
        l->attrs[i].kind = info->attrs[i].kind;
        if (!expect_punct(r, "=") || !read_attr_value(r, l, &l->attrs[i])) return false;
    } while (accept(r, MC_MOIR_PUNCT, ","));
    return expect_punct(r, "}");
}

static bool
read_view(reader *r, line *l, mc_place *out)
{
    mc_moir_token token;
    out->kind = MC_PLACE_VIEW;
    if (!read_value(r, &out->base)) return false;
    if (!out->base) l->broken = true;
    if (accept(r, MC_MOIR_PUNCT, "+")) {
        if (!expect_kind(r, MC_MOIR_INT, "a number", &token)) return false;
        out->offset = token.integer;
    }
    if (accept(r, MC_MOIR_IDENT, "stride")) {
        if (!expect_kind(r, MC_MOIR_INT, "a number", &token)) return false;
        out->row_stride = token.integer;
    }
    if (out->offset >= 0 && out->row_stride >= 0) return true;
    r->lexer.failed = true;
    return mc_error(r->diags, token.span, MC_E0401, "a view does not go backwards");
}

static bool
read_place(reader *r, line *l, mc_place *out)
{
    static const struct {
        const char *text;
        mc_place_kind kind;
    } kinds[] = {{"slot", MC_PLACE_SLOT},     {"arg", MC_PLACE_ARG},     {"result", MC_PLACE_RESULT},
                 {"weight", MC_PLACE_WEIGHT}, {"state", MC_PLACE_STATE}, {"const", MC_PLACE_CONST}};
    if (!accept(r, MC_MOIR_IDENT, "at")) return true;
    if (accept(r, MC_MOIR_IDENT, "view")) return read_view(r, l, out);
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (!accept(r, MC_MOIR_IDENT, kinds[i].text)) continue;
        out->kind = kinds[i].kind;
        return out->kind == MC_PLACE_CONST || read_index(r, &out->index);
    }
    return malformed(r, "a place");
}

static bool
read_result_types(reader *r, line *l)
{
    if (!accept(r, MC_MOIR_PUNCT, ":")) return true;
    do {
        if (l->n_types == MC_MAX_RESULTS) return malformed(r, "fewer results");
        if (!read_type(r, &l->types[l->n_types])) return false;
        if (!read_place(r, l, &l->places[l->n_types])) return false;
        l->n_types++;
    } while (accept(r, MC_MOIR_PUNCT, ","));
    return true;
}

static bool
read_opcode(reader *r, line *l)
{
    mc_moir_token token;
    if (!expect_kind(r, MC_MOIR_IDENT, "an operation", &token)) return false;
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
check_line(reader *r, const line *l, mc_span span)
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

static bool
read_line(reader *r)
{
    line *l = MC_NEW(r->arena, line);
    mc_span begin = r->token.span;
    mc_moir_token name;
    if (r->token.kind == MC_MOIR_VALUE) {
        do {
            if (l->names.n == MC_MAX_RESULTS) return malformed(r, "fewer results");
            if (!expect_kind(r, MC_MOIR_VALUE, "a value", &name)) return false;
            mc_vec_push(r->arena, &l->names, name);
        } while (accept(r, MC_MOIR_PUNCT, ","));
        if (!expect_punct(r, "=")) return false;
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
        op->results[i].name = mc_str_dup(r->module->arena, hint_of(l->names.items[i]));
        define(r, l->names.items[i], &op->results[i]);
    }
    return !r->diags->too_many;
}

static bool
read_slots(reader *r)
{
    MC_VEC(mc_slot) slots = {0};
    while (accept(r, MC_MOIR_IDENT, "slot")) {
        int32_t index;
        mc_span at = r->token.span;
        MC_VEC(mc_dim) bytes = {0};
        if (!read_index(r, &index)) return false;
        if ((size_t)index != slots.n) {
            r->lexer.failed = true;
            return mc_error(r->diags, at, MC_E0401, "slots are numbered in order; this is slot %zu", slots.n);
        }
        if (!expect_punct(r, ":") || !expect(r, MC_MOIR_IDENT, "bytes") || !expect_punct(r, "[")) return false;
        while (!is(r, MC_MOIR_PUNCT, "]")) {
            mc_dim dim;
            if (bytes.n && !expect_punct(r, ",")) return false;
            if (!read_dim(r, &dim)) return false;
            mc_vec_push(r->module->arena, &bytes, dim);
        }
        advance(r);
        mc_slot slot = {bytes.items, bytes.n};
        mc_vec_push(r->module->arena, &slots, slot);
    }
    r->func->slots = slots.items;
    r->func->n_slots = slots.n;
    return true;
}

static bool
read_formals(reader *r)
{
    if (!expect_punct(r, "(")) return false;
    while (!is(r, MC_MOIR_PUNCT, ")")) {
        mc_moir_token name;
        const mc_type *type;
        if (r->func->formals.n == MAX_OPERANDS) return malformed(r, "fewer arguments");
        if (r->func->formals.n && !expect_punct(r, ",")) return false;
        if (!expect_kind(r, MC_MOIR_VALUE, "an argument", &name)) return false;
        if (!expect_punct(r, ":") || !read_type(r, &type)) return false;
        mc_value *formal = mc_func_add_formal(r->func, type, hint_of(name));
        if (r->module->stage == MC_STAGE_PLAN) {
            formal->place = (mc_place){.kind = MC_PLACE_ARG, .index = (int32_t)formal->index};
        }
        define(r, name, formal);
    }
    advance(r);
    return true;
}

static bool
read_declared_results(reader *r, line *l)
{
    if (!expect_punct(r, "->") || !expect_punct(r, "(")) return false;
    while (!is(r, MC_MOIR_PUNCT, ")")) {
        if (l->n_types == MC_MAX_RESULTS) return malformed(r, "fewer results");
        if (l->n_types && !expect_punct(r, ",")) return false;
        if (!read_type(r, &l->types[l->n_types])) return false;
        l->n_types++;
    }
    advance(r);
    return true;
}

static void
check_declared_results(reader *r, const line *l, mc_span span)
{
    const mc_op *end = r->func->last;
    bool same = end->n_operands == l->n_types;
    for (int i = 0; same && i < l->n_types; i++) {
        const mc_value *value = end->operands[i].value;
        same = !value || value->type == l->types[i];
    }
    if (same) return;
    r->refused = true;
    mc_error(r->diags, span, MC_E0406, "@%.*s does not return what it declares", MC_FMT(r->func->name));
    mc_note(r->diags, end->span, "it returns this");
}

static bool
read_func(reader *r, bool is_model)
{
    mc_moir_token name;
    line *l = MC_NEW(r->arena, line);
    if (!expect_kind(r, MC_MOIR_FUNC, "the name of a function", &name)) return false;
    if (!mc_moir_is_ident(name.text)) {
        r->lexer.failed = true;
        return mc_error(r->diags, name.span, MC_E0401, "@%.*s is not a name", MC_FMT(name.text));
    }
    r->func = mc_func_create(r->module, name.text, name.span);
    r->func->is_model = is_model;
    mc_map_init(&r->values, r->arena);
    if (!read_formals(r) || !read_declared_results(r, l) || !expect_punct(r, "{") || !read_slots(r)) return false;
    do {
        if (is(r, MC_MOIR_PUNCT, "}")) return malformed(r, "return");
        if (!read_line(r)) return false;
    } while (r->func->last->opcode != MC_OP_RETURN);
    if (!expect_punct(r, "}")) return false;
    check_declared_results(r, l, name.span);
    /* Known only from here on, so that no function can refer to itself. */
    if (!mc_map_set(&r->funcs, r->func->name, r->func)) {
        r->refused = true;
        mc_error(r->diags, name.span, MC_E0205, "@%.*s is defined twice", MC_FMT(name.text));
    }
    return true;
}

static bool
read_header(reader *r)
{
    mc_moir_token version, stage;
    if (!expect(r, MC_MOIR_IDENT, "moir") || !expect_kind(r, MC_MOIR_INT, "a version", &version)) return false;
    if (version.integer != MC_MOIR_VERSION) {
        return mc_error(r->diags, version.span, MC_E0401, "version %lld of .moir; this moec reads version %d",
                        (long long)version.integer, MC_MOIR_VERSION);
    }
    if (!expect(r, MC_MOIR_IDENT, "stage") || !expect_punct(r, "=")) return false;
    if (!expect_kind(r, MC_MOIR_IDENT, "a stage", &stage)) return false;
    for (int i = 0; mc_moir_stages[i]; i++) {
        if (!mc_str_is(stage.text, mc_moir_stages[i])) continue;
        r->module->stage = (mc_stage)i;
        return true;
    }
    return mc_error(r->diags, stage.span, MC_E0401, "'%.*s' is not a stage: tensor, dist, plan", MC_FMT(stage.text));
}

static bool
read_module(reader *r)
{
    if (!read_header(r)) return false;
    while (r->token.kind != MC_MOIR_END) {
        bool good;
        if (accept(r, MC_MOIR_IDENT, "dim")) {
            good = read_symbol(r);
        } else if (accept(r, MC_MOIR_IDENT, "meta")) {
            good = read_meta(r);
        } else if (accept(r, MC_MOIR_IDENT, "func")) {
            good = read_func(r, false);
        } else if (accept(r, MC_MOIR_IDENT, "model")) {
            good = read_func(r, true);
        } else {
            good = malformed(r, "dim, meta, func or model");
        }
        if (!good) return false;
    }
    return !r->lexer.failed && !r->refused;
}

mc_module *
mc_module_read(mc_sources *sources, uint32_t file, mc_diags *diags)
{
    const mc_source *source = mc_source_of(sources, (mc_span){.file = file});
    if (!source) return NULL;
    reader r = {.arena = mc_arena_create(), .diags = diags, .module = mc_module_create(sources)};
    r.lexer = (mc_moir_lexer){.arena = r.arena, .diags = diags, .text = source->text, .file = file};
    mc_map_init(&r.funcs, r.arena);
    mc_map_init(&r.values, r.arena);
    advance(&r);
    bool good = read_module(&r);
    mc_arena_destroy(r.arena);
    if (good) return r.module;
    mc_module_destroy(r.module);
    return NULL;
}
