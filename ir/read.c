/* The text form, in. One loop over tokens, no recursion, and nothing is allocated from a number in the text.
 *
 * A malformed text stops the reader at once. A line that can be parsed but means nothing (an unknown value, a refused
 * op) is reported, its results are taken as declared, and reading goes on, so that one run shows several mistakes. */
#include "ir/print.h"

#include "ir/edit.h"
#include "ir/infer.h"
#include "ir/read_impl.h"

enum { MAX_META = 1024 };
static const int64_t max_extent = (int64_t)1 << 48;

typedef struct declared_results {
    const mc_type *types[MC_MAX_RESULTS];
    int n_types;
} declared_results;

static bool
read_symbol(mc_reader *r)
{
    mc_moir_token name, number;
    if (!mc_read_kind(r, MC_MOIR_IDENT, "the name of a dimension", &name)) return false;
    int before = r->module->n_syms, at = mc_symbol_get(r->module, name.text);
    if (at < 0 || at < before) {
        r->lexer.failed = true;
        if (at < 0) return mc_error(r->diags, name.span, MC_E0319, "more than %d dimensions", MC_MAX_SYMS);
        return mc_error(r->diags, name.span, MC_E0205, "'%.*s' is declared twice", MC_FMT(name.text));
    }
    mc_symbol *sym = &r->module->syms[at];
    if (!mc_read_accept(r, MC_MOIR_IDENT, "in")) return true;
    if (!mc_read_kind(r, MC_MOIR_INT, "a number", &number) || !mc_read_punct(r, "..")) return false;
    sym->lo = number.integer;
    if (r->token.kind == MC_MOIR_INT) {
        sym->hi = r->token.integer;
        mc_read_advance(r);
    }
    if (sym->lo >= 0 && (sym->hi == 0 || sym->hi >= sym->lo) && sym->hi <= max_extent) return true;
    r->lexer.failed = true;
    return mc_error(r->diags, number.span, MC_E0401, "this is not a range");
}

static bool
read_meta(mc_reader *r)
{
    mc_moir_token key, value;
    if (!mc_read_kind(r, MC_MOIR_STRING, "a string", &key) || !mc_read_punct(r, "=")) return false;
    if (!mc_read_kind(r, MC_MOIR_STRING, "a string", &value)) return false;
    if (r->module->metas.n == MAX_META) return mc_read_malformed(r, "fewer metas");
    mc_module_set_meta(r->module, key.text, value.text);
    return true;
}

static bool
read_slots(mc_reader *r)
{
    MC_VEC(mc_slot) slots = {0};
    while (mc_read_accept(r, MC_MOIR_IDENT, "slot")) {
        int32_t index;
        mc_span at = r->token.span;
        MC_VEC(mc_dim) bytes = {0};
        if (!mc_read_index(r, &index)) return false;
        if ((size_t)index != slots.n) {
            r->lexer.failed = true;
            return mc_error(r->diags, at, MC_E0401, "slots are numbered in order; this is slot %zu", slots.n);
        }
        if (!mc_read_punct(r, ":") || !mc_read_expect(r, MC_MOIR_IDENT, "bytes") || !mc_read_punct(r, "["))
            return false;
        while (!mc_read_is(r, MC_MOIR_PUNCT, "]")) {
            mc_dim dim;
            if (bytes.n && !mc_read_punct(r, ",")) return false;
            if (!mc_read_dim(r, &dim)) return false;
            mc_vec_push(r->module->arena, &bytes, dim);
        }
        mc_read_advance(r);
        mc_slot slot = {bytes.items, bytes.n};
        mc_vec_push(r->module->arena, &slots, slot);
    }
    r->func->slots = slots.items;
    r->func->n_slots = slots.n;
    return true;
}

static bool
read_formals(mc_reader *r)
{
    if (!mc_read_punct(r, "(")) return false;
    while (!mc_read_is(r, MC_MOIR_PUNCT, ")")) {
        mc_moir_token name;
        const mc_type *type;
        if (r->func->formals.n == MC_READ_MAX_OPERANDS) return mc_read_malformed(r, "fewer arguments");
        if (r->func->formals.n && !mc_read_punct(r, ",")) return false;
        if (!mc_read_kind(r, MC_MOIR_VALUE, "an argument", &name)) return false;
        if (!mc_read_punct(r, ":") || !mc_read_type(r, &type)) return false;
        mc_value *formal = mc_func_add_formal(r->func, type, mc_read_hint(name));
        if (r->module->stage == MC_STAGE_PLAN) {
            formal->place = (mc_place){.kind = MC_PLACE_ARG, .index = (int32_t)formal->index};
        }
        mc_read_define(r, name, formal);
    }
    mc_read_advance(r);
    return true;
}

static bool
read_declared_results(mc_reader *r, declared_results *declared)
{
    if (!mc_read_punct(r, "->") || !mc_read_punct(r, "(")) return false;
    while (!mc_read_is(r, MC_MOIR_PUNCT, ")")) {
        if (declared->n_types == MC_MAX_RESULTS) return mc_read_malformed(r, "fewer results");
        if (declared->n_types && !mc_read_punct(r, ",")) return false;
        if (!mc_read_type(r, &declared->types[declared->n_types])) return false;
        declared->n_types++;
    }
    mc_read_advance(r);
    return true;
}

static void
check_declared_results(mc_reader *r, const declared_results *declared, mc_span span)
{
    const mc_op *end = r->func->last;
    bool same = end->n_operands == declared->n_types;
    for (int i = 0; same && i < declared->n_types; i++) {
        const mc_value *value = end->operands[i].value;
        same = !value || value->type == declared->types[i];
    }
    if (same) return;
    r->refused = true;
    mc_error(r->diags, span, MC_E0406, "@%.*s does not return what it declares", MC_FMT(r->func->name));
    mc_note(r->diags, end->span, "it returns this");
}

static bool
read_func(mc_reader *r, bool is_model)
{
    mc_moir_token name;
    declared_results *declared = MC_NEW(r->arena, declared_results);
    if (!mc_read_kind(r, MC_MOIR_FUNC, "the name of a function", &name)) return false;
    if (!mc_moir_is_ident(name.text)) {
        r->lexer.failed = true;
        return mc_error(r->diags, name.span, MC_E0401, "@%.*s is not a name", MC_FMT(name.text));
    }
    r->func = mc_func_create(r->module, name.text, name.span);
    r->func->is_model = is_model;
    mc_map_init(&r->values, r->arena);
    if (!read_formals(r) || !read_declared_results(r, declared) || !mc_read_punct(r, "{") || !read_slots(r))
        return false;
    do {
        if (mc_read_is(r, MC_MOIR_PUNCT, "}")) return mc_read_malformed(r, "return");
        if (!mc_read_line(r)) return false;
    } while (r->func->last->opcode != MC_OP_RETURN);
    if (!mc_read_punct(r, "}")) return false;
    check_declared_results(r, declared, name.span);
    /* Known only from here on, so that no function can refer to itself. */
    if (!mc_map_set(&r->funcs, r->func->name, r->func)) {
        r->refused = true;
        mc_error(r->diags, name.span, MC_E0205, "@%.*s is defined twice", MC_FMT(name.text));
    }
    return true;
}

static bool
read_header(mc_reader *r)
{
    mc_moir_token version, stage;
    if (!mc_read_expect(r, MC_MOIR_IDENT, "moir") || !mc_read_kind(r, MC_MOIR_INT, "a version", &version)) return false;
    if (version.integer != MC_MOIR_VERSION) {
        return mc_error(r->diags, version.span, MC_E0401, "version %lld of .moir; this moec reads version %d",
                        (long long)version.integer, MC_MOIR_VERSION);
    }
    if (!mc_read_expect(r, MC_MOIR_IDENT, "stage") || !mc_read_punct(r, "=")) return false;
    if (!mc_read_kind(r, MC_MOIR_IDENT, "a stage", &stage)) return false;
    for (int i = 0; mc_moir_stages[i]; i++) {
        if (!mc_str_is(stage.text, mc_moir_stages[i])) continue;
        r->module->stage = (mc_stage)i;
        return true;
    }
    return mc_error(r->diags, stage.span, MC_E0401, "'%.*s' is not a stage: tensor, dist, plan", MC_FMT(stage.text));
}

static bool
read_module(mc_reader *r)
{
    if (!read_header(r)) return false;
    while (r->token.kind != MC_MOIR_END) {
        bool good;
        if (mc_read_accept(r, MC_MOIR_IDENT, "dim")) {
            good = read_symbol(r);
        } else if (mc_read_accept(r, MC_MOIR_IDENT, "meta")) {
            good = read_meta(r);
        } else if (mc_read_accept(r, MC_MOIR_IDENT, "func")) {
            good = read_func(r, false);
        } else if (mc_read_accept(r, MC_MOIR_IDENT, "model")) {
            good = read_func(r, true);
        } else {
            good = mc_read_malformed(r, "dim, meta, func or model");
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
    mc_reader r = {.arena = mc_arena_create(), .diags = diags, .module = mc_module_create(sources)};
    r.lexer = (mc_moir_lexer){.arena = r.arena, .diags = diags, .text = source->text, .file = file};
    mc_map_init(&r.funcs, r.arena);
    mc_map_init(&r.values, r.arena);
    mc_read_advance(&r);
    bool good = read_module(&r);
    mc_arena_destroy(r.arena);
    if (good) return r.module;
    mc_module_destroy(r.module);
    return NULL;
}
