/* Weights: every declaration is entered once under its full path; the op in the function carries the path relative to
 * the scope of the function's call. */
#include "frontend/elab.h"

#include <assert.h>

static mc_weight_info *
find_weight(mc_elab *e, mc_str path)
{
    uintptr_t at = (uintptr_t)mc_map_get(&e->weights, path);
    return at ? &e->out->weights.items[at - 1] : NULL;
}

static bool
duplicate(mc_elab *e, const mc_weight_spec *spec, mc_str path, const mc_weight_info *before)
{
    mc_span here = mc_elab_user_span(e, spec->span), there = mc_elab_user_span(e, before->span);
    bool same = here.file == there.file && here.begin == there.begin;
    mc_elab_error(e, spec->span, MC_E0203, "two weights are named %.*s%s; label one call, as in linear@name(...)",
                  MC_FMT(path), same ? ": this is run twice" : "");
    if (!same) mc_elab_note(e, before->span, "the other one is made here");
    return false;
}

/* The stored shape, with the axis of experts. NULL after an error. */
static const mc_type *
stored_type(mc_elab *e, const mc_weight_spec *spec, moec_dtype dtype)
{
    mc_dim dims[MC_MAX_RANK];
    int rank = 0;
    int64_t n = 1;
    if (e->frame->experts) dims[rank++] = mc_dim_const(e->frame->experts);
    for (int i = 0; i < spec->rank; i++) {
        if (rank == MC_MAX_RANK || !mc_dim_is_const(spec->dims[i])) {
            bool rank_fault = rank == MC_MAX_RANK;
            mc_elab_error(e, spec->span, rank_fault ? MC_E0319 : MC_E0314,
                          rank_fault ? "a weight with more than %d axes"
                                     : "a weight needs dimensions known at compile time",
                          MC_MAX_RANK);
            return NULL;
        }
        dims[rank++] = spec->dims[i];
    }
    for (int i = 0; i < rank; i++) {
        if (!__builtin_mul_overflow(n, dims[i].mul, &n) && n <= MC_MAX_ELEMS) continue;
        mc_elab_error(e, spec->span, MC_E0319, "a weight of more than 2^48 elements");
        return NULL;
    }
    return mc_type_get(e->module, dtype, dims, rank);
}

mc_value *
mc_weight_make(mc_elab *e, const mc_weight_spec *spec)
{
    if (!e->frame) {
        mc_elab_error(e, spec->span, MC_E0309, "weights exist only inside a block or model");
        return NULL;
    }
    mc_str path = mc_elab_path(e, 0, spec->label, spec->leaf);
    const mc_weight_info *before = find_weight(e, path);
    if (before) {
        duplicate(e, spec, path, before);
        return NULL;
    }
    moec_dtype dtype = spec->dtype ? spec->dtype : e->storage;
    const mc_type *stored = stored_type(e, spec, dtype);
    if (!stored) return NULL;
    mc_weight_info info = {
        path, stored, mc_str_of(spec->role), e->frame->experts, spec->init, mc_elab_user_span(e, spec->span)};
    mc_vec_push(e->arena, &e->out->weights, info);
    mc_map_set(&e->weights, path, (void *)(uintptr_t)e->out->weights.n);
    mc_builder *b = &e->frame->builder;
    b->span = info.span;
    const mc_type *type = mc_type_get(e->module, dtype, spec->dims, spec->rank);
    mc_str own = mc_elab_path(e, e->frame->base, spec->label, spec->leaf);
    mc_value *w = mc_build_weight(b, own, false, spec->role, e->frame->experts, type);
    if (w && spec->init.len) mc_op_set_attr(w->def, "init", (mc_attr){.kind = MC_ATTR_STR, .as.s = spec->init});
    return w;
}

void
mc_weight_begins(mc_value *w, const char *init)
{
    if (w->def->opcode == MC_OP_WEIGHT && !mc_attr_bool(w->def, "root"))
        mc_op_set_attr(w->def, "init", (mc_attr){.kind = MC_ATTR_STR, .as.s = mc_str_of(init)});
}

static size_t
count_parts(mc_str path)
{
    size_t n = 1;
    for (size_t i = 0; i < path.len; i++) n += path.data[i] == '.';
    return n;
}

/* Offers the nearest weight of as many parts: names of layers differ in one part more often than in a letter. */
static mc_value *
unknown_ref(mc_elab *e, mc_str path, mc_span span)
{
    enum { FAR = 12 };
    int best = FAR + 1;
    mc_str near = MC_STR("");
    for (size_t i = 0; i < e->out->weights.n; i++) {
        mc_str p = e->out->weights.items[i].path;
        int distance = count_parts(p) == count_parts(path) ? mc_str_distance(path, p, FAR) : FAR + 1;
        if (distance >= best) continue;
        best = distance;
        near = p;
    }
    if (near.len)
        mc_elab_error(e, span, MC_E0204, "no weight @%.*s; there is @%.*s", MC_FMT(path), MC_FMT(near));
    else
        mc_elab_error(e, span, MC_E0204,
                      "no weight @%.*s; @ takes the path from the model down, of a weight made earlier", MC_FMT(path));
    return NULL;
}

mc_value *
mc_weight_ref(mc_elab *e, mc_str path, mc_span span)
{
    assert(e->frame);
    const mc_weight_info *info = find_weight(e, path);
    if (!info) return unknown_ref(e, path, span);
    if (e->frame->kind == MC_FRAME_EXPERT) {
        mc_elab_error(e, span, MC_E0331, "an expert cannot share the weight @%.*s: each expert has its own",
                      MC_FMT(path));
        return NULL;
    }
    mc_value *known = mc_map_get(&e->frame->roots, info->path);
    if (known) return known;
    e->frame->builder.span = mc_elab_user_span(e, span);
    mc_value *w = mc_build_weight(&e->frame->builder, info->path, true, info->role.data, 0, info->type);
    mc_map_set(&e->frame->roots, info->path, w);
    return w;
}

/* A linear, or a bare weight, by where it stands. */
const char *
mc_weight_role(mc_elab *e, bool is_linear)
{
    switch (e->region) {
    case MC_REGION_ROUTER: return "router";
    case MC_REGION_EXPERTS: return "experts";
    case MC_REGION_SHARED: return "shared";
    case MC_REGION_PLAIN: break;
    }
    for (size_t i = e->stack.n; i > 0; i--) {
        const mc_block *b = e->stack.items[i - 1].block;
        bool innermost = i == e->stack.n;
        if (innermost ? b->uses_attention : b->has_attention) return "attention";
    }
    bool in_model = e->stack.n == 0 && e->frame->kind == MC_FRAME_MODEL;
    return is_linear && in_model ? "head" : "dense";
}

void
mc_elab_totals(mc_elab *e)
{
    mc_elab_result *r = e->out;
    bool overflow = false;
    for (size_t i = 0; i < r->weights.n; i++) {
        mc_dim n;
        const mc_type *t = r->weights.items[i].type;
        overflow = !mc_dims_product(t->dims, t->rank, &n) || __builtin_add_overflow(r->n_params, n.mul, &r->n_params);
        if (!overflow) continue;
        mc_elab_error(e, r->weights.items[i].span, MC_E0319, "the model has more than 2^63 parameters");
        return;
    }
    r->n_active_params = r->n_params - e->inactive;
}
