/* Scopes hold variables; frames hold the IR functions being built. The one idea: a tensor belongs to the function it
 * was made in, and reading it in an inner function turns it into a formal there, once, in order of first use. So equal
 * bodies of a repeat come out as equal functions whatever they read. */
#include "frontend/elab.h"

#include <assert.h>

mc_scope *
mc_scope_push(mc_elab *e, bool is_block, const mc_block *block)
{
    mc_scope *s = MC_NEW(e->arena, mc_scope);
    *s = (mc_scope){.parent = e->scope, .is_block = is_block, .block = block};
    if (!is_block && e->scope) s->block = e->scope->block;
    e->scope = s;
    return s;
}

void
mc_scope_pop(mc_elab *e)
{
    e->scope = e->scope->parent;
}

mc_binding *
mc_scope_find(mc_elab *e, mc_str name)
{
    for (mc_scope *s = e->scope; s; s = s->is_block ? NULL : s->parent) {
        for (mc_binding *b = s->first; b; b = b->next) {
            if (mc_str_eq(b->name, name)) return b;
        }
    }
    return NULL;
}

void
mc_scope_declare(mc_elab *e, mc_str name, mc_val value)
{
    mc_binding *b = MC_NEW(e->arena, mc_binding);
    *b = (mc_binding){.name = name, .value = value, .frame = e->frame, .next = e->scope->first};
    e->scope->first = b;
}

void
mc_binding_set(mc_elab *e, mc_binding *binding, mc_val value)
{
    binding->value = value;
    if (binding->frame == e->frame) return;
    for (size_t i = 0; i < e->frame->assigned.n; i++) {
        if (e->frame->assigned.items[i] == binding) return;
    }
    mc_vec_push(e->arena, &e->frame->assigned, binding);
}

void
mc_scope_assign(mc_elab *e, mc_str name, mc_val value)
{
    mc_binding *b = mc_scope_find(e, name);
    if (b) {
        mc_binding_set(e, b, value);
    } else {
        mc_scope_declare(e, name, value);
    }
}

/* ---- frames ---- */

static mc_str
unique_name(mc_elab *e, mc_str name)
{
    bool numbered = name.len && name.data[0] >= '0' && name.data[0] <= '9'; /* a repeat without a label */
    if (numbered) name = mc_strf(e->arena, "repeat.%.*s", MC_FMT(name));
    mc_str candidate = name;
    for (int i = 2; mc_map_has(&e->func_names, candidate); i++)
        candidate = mc_strf(e->arena, "%.*s_%d", MC_FMT(name), i);
    mc_map_set(&e->func_names, mc_str_dup(e->arena, candidate), e);
    return candidate;
}

mc_frame *
mc_frame_push(mc_elab *e, mc_frame_kind kind, mc_str name, mc_span span)
{
    mc_frame *f = MC_NEW(e->arena, mc_frame);
    f->kind = kind;
    f->parent = e->frame;
    f->func = mc_func_create(e->module, unique_name(e, name), span);
    f->builder = mc_builder_at_end(f->func, e->diags);
    bool inner = kind == MC_FRAME_ROUTE || kind == MC_FRAME_EXPERT;
    f->base = inner ? e->frame->base : e->labels.n;
    mc_map_init(&f->roots, e->arena);
    e->frame = f;
    return f;
}

void
mc_frame_pop(mc_elab *e)
{
    e->frame = e->frame->parent;
}

static mc_value *
import_tensor(mc_elab *e, mc_frame *f, mc_value *v, mc_span use)
{
    if (v->func == f->func) return v;
    if (f->kind == MC_FRAME_EXPERT) {
        mc_elab_error(e, use, MC_E0331, "an expert works on its own rows only: it cannot use a tensor from outside");
        return NULL;
    }
    assert(f->parent);
    mc_value *outer = import_tensor(e, f->parent, v, use);
    if (!outer) return NULL;
    for (size_t i = 0; i < f->captures.n; i++) {
        if (f->captures.items[i].outer == outer) return f->captures.items[i].formal;
    }
    mc_capture capture = {outer, mc_func_add_formal(f->func, outer->type, outer->name)};
    mc_vec_push(e->arena, &f->captures, capture);
    return capture.formal;
}

/* A weight of the model itself is read as @path rather than handed down, so that it stays visible as a weight. */
static mc_value *
import_value(mc_elab *e, mc_value *v, mc_span use)
{
    if (v->func == e->frame->func) return v;
    bool weight = v->def && v->def->opcode == MC_OP_WEIGHT && v->func->is_model;
    if (weight && e->frame->kind != MC_FRAME_EXPERT) return mc_weight_ref(e, mc_attr_str(v->def, "path"), use);
    return import_tensor(e, e->frame, v, use);
}

static mc_val
import_list(mc_elab *e, mc_val v, mc_span use)
{
    mc_val copy = v;
    copy.as.list.items = MC_NEW_N(e->arena, mc_val, v.as.list.n);
    for (size_t i = 0; i < v.as.list.n; i++) {
        copy.as.list.items[i] = mc_frame_import(e, v.as.list.items[i], use);
        if (copy.as.list.items[i].kind == MC_VAL_POISON) return mc_val_poison();
    }
    return copy;
}

static mc_val
import_fn(mc_elab *e, mc_val v, mc_span use)
{
    if (!v.as.fn->has_tensor) return v;
    if (!mc_elab_step(e, use)) return mc_val_poison();
    mc_fn *copy = mc_arena_copy(e->arena, v.as.fn, sizeof *copy);
    copy->args = mc_arena_copy(e->arena, copy->args, copy->n_args * sizeof *copy->args);
    for (size_t i = 0; i < copy->n_args; i++) {
        copy->args[i].value = mc_frame_import(e, copy->args[i].value, use);
        if (copy->args[i].value.kind == MC_VAL_POISON) return mc_val_poison();
    }
    v.as.fn = copy;
    return v;
}

mc_val
mc_frame_import(mc_elab *e, mc_val v, mc_span use)
{
    if (!e->frame) return v;
    switch (v.kind) {
    case MC_VAL_TENSOR: {
        mc_value *inner = import_value(e, v.as.tensor, use);
        return mc_val_tensor(inner, v.span);
    }
    case MC_VAL_TUPLE: return import_list(e, v, use);
    case MC_VAL_ROUTE: {
        mc_route_val *r = mc_arena_copy(e->arena, v.as.route, sizeof *r);
        r->weights = import_value(e, r->weights, use);
        r->ids = import_value(e, r->ids, use);
        if (!r->weights || !r->ids) return mc_val_poison();
        v.as.route = r;
        return v;
    }
    case MC_VAL_FN: return import_fn(e, v, use);
    case MC_VAL_POISON:
    case MC_VAL_NONE:
    case MC_VAL_INT:
    case MC_VAL_REAL:
    case MC_VAL_BOOL:
    case MC_VAL_STRING:
    case MC_VAL_WORD:
    case MC_VAL_DIM:
    case MC_VAL_RANGE:
    case MC_VAL_LIST: /* lists hold compile-time values only */
    case MC_VAL_WREF:
    case MC_VAL_SCALING: return v;
    }
    return v;
}

/* ---- labels ---- */

mc_str
mc_elab_path(mc_elab *e, size_t from, mc_str label, mc_str leaf)
{
    mc_buf path = {0};
    for (size_t i = from; i < e->labels.n + 2; i++) {
        mc_str part = i < e->labels.n ? e->labels.items[i] : i == e->labels.n ? label : leaf;
        if (part.len == 0 || mc_str_is(part, "_")) continue;
        if (path.len) mc_buf_putc(&path, '.');
        mc_buf_str(&path, part);
    }
    mc_str copy = mc_str_dup(e->arena, mc_buf_view(&path));
    mc_buf_fini(&path);
    return copy;
}

bool
mc_label_push(mc_elab *e, mc_str label)
{
    if (label.len == 0 || mc_str_is(label, "_")) return false;
    mc_vec_push(e->arena, &e->labels, label);
    return true;
}

void
mc_label_pop(mc_elab *e, bool pushed)
{
    if (pushed) e->labels.n--;
}
