/* Inlining: a block's text is run in a scope of its own, with its label on the weights' paths. The model itself is run
 * the same way, into a function. */
#include "frontend/elab.h"

/* A narrow float written in a signature is a rounding; activations are f32 again behind it. */
static mc_value *
round_to(mc_elab *e, mc_value *t, moec_dtype dtype)
{
    if (!mc_type_is_float(t->type) || dtype == MOEC_F32)
        return mc_tensor_cast(e, t, mc_type_is_float(t->type) ? MOEC_F32 : t->type->dtype);
    if (t->type->dtype == dtype) return t;
    return mc_tensor_cast(e, mc_tensor_cast(e, t, dtype), MOEC_F32);
}

static bool
bind_tensors(mc_elab *e, const mc_block *block, mc_call *c)
{
    size_t i = 0;
    for (const mc_formal *f = block->item->formals; f; f = f->next) {
        if (!f->is_tensor) continue;
        mc_val v = c->tensors[i];
        if (!mc_shape_bind(e, f, v, c->tensor_spans[i++], c->name)) return false;
        if (f->type.dtype.text.len && v.kind == MC_VAL_TENSOR) {
            moec_dtype dtype;
            if (!mc_shape_dtype(e, f->type.dtype, MOEC_F32, &dtype)) return false;
            v = mc_val_tensor(round_to(e, v.as.tensor, dtype), v.span);
        }
        mc_scope_declare(e, f->name.text, v);
    }
    return true;
}

static bool
bind_values(mc_elab *e, const mc_block *block, mc_call *c)
{
    size_t i = 0;
    for (const mc_formal *f = block->item->formals; f; f = f->next) {
        if (f->is_tensor) continue;
        const mc_call_param *p = &c->params[i++];
        mc_val v = p->value;
        if (!p->given && !f->initial) {
            mc_elab_error(e, c->span, MC_E0307, "%.*s needs '%.*s'", MC_FMT(c->name), MC_FMT(f->name.text));
            mc_elab_note(e, f->name.span, "declared here, without a default");
            return false;
        }
        if (!p->given) v = mc_eval(e, f->initial);
        if (v.kind == MC_VAL_POISON) return false;
        mc_scope_declare(e, f->name.text, v);
    }
    return true;
}

static mc_value *
result_tensor(mc_elab *e, const mc_formal *f, mc_val v, mc_span at, const mc_item *item)
{
    moec_dtype dtype;
    mc_value *t = mc_tensor_of(e, v, at, "what is returned");
    if (!t || !mc_shape_check_result(e, f, mc_val_tensor(t, v.span), at, item)) return NULL;
    if (!mc_shape_dtype(e, f->type.dtype, MOEC_DTYPE_NONE, &dtype)) return NULL;
    return dtype && mc_type_is_float(t->type) ? round_to(e, t, dtype) : t;
}

static mc_val
block_results(mc_elab *e, const mc_item *item, mc_span span)
{
    mc_val_list got = e->results;
    const mc_span *spans = e->result_spans;
    size_t n = 0;
    for (const mc_formal *f = item->results; f; f = f->next) n++;
    if (n != got.n)
        return mc_elab_error(e, span, MC_E0317, "%.*s declares %zu result%s, but returns %zu", MC_FMT(item->name.text),
                             n, n == 1 ? "" : "s", got.n);
    mc_val *out = MC_NEW_N(e->arena, mc_val, n + 1);
    size_t i = 0;
    for (const mc_formal *f = item->results; f; f = f->next, i++) {
        mc_value *t = result_tensor(e, f, got.items[i], spans[i], item);
        if (!t) return mc_val_poison();
        out[i] = mc_val_tensor(t, span);
    }
    if (n == 1) return out[0];
    mc_val v = {.kind = MC_VAL_TUPLE, .span = span};
    v.as.list = (mc_val_list){out, n, n};
    return v;
}

static mc_val
run_block(mc_elab *e, const mc_block *block, mc_call *c)
{
    if (!bind_tensors(e, block, c) || !bind_values(e, block, c)) return mc_val_poison();
    bool pushed = mc_label_push(e, c->label.text);
    mc_run run = mc_run_body(e, block->item->body);
    mc_label_pop(e, pushed);
    if (run == MC_RUN_FAILED) return mc_val_poison();
    if (run == MC_RUN_ON) e->results = (mc_val_list){0};
    return block_results(e, block->item, c->span);
}

mc_val
mc_inline_block(mc_elab *e, const mc_block *block, mc_call *c)
{
    if (!e->frame && c->n_tensor_names)
        return mc_elab_error(e, c->span, MC_E0309, "tensors exist only inside a block or model");
    if (e->stack.n == MC_MAX_BLOCK_DEPTH) {
        mc_elab_error(e, c->span, MC_E0208, "blocks call each other more than %d deep: '%.*s' leads back to itself",
                      MC_MAX_BLOCK_DEPTH, MC_FMT(c->name));
        e->fatal = true;
        return mc_val_poison();
    }
    mc_scope *outer = e->scope;
    mc_span user_span = e->user_span;
    if (c->span.file != e->prelude_file) e->user_span = c->span;
    mc_map_set(&e->inlined, block->item->name.text, e);
    mc_active active = {block, c->span};
    mc_vec_push(e->arena, &e->stack, active);
    mc_scope_push(e, true, block);
    mc_val v = run_block(e, block, c);
    e->scope = outer;
    e->stack.n--;
    e->user_span = user_span;
    return v;
}

/* ---- the model ---- */

static bool
add_formal(mc_elab *e, const mc_formal *f)
{
    mc_dim dims[MC_MAX_RANK];
    moec_dtype dtype;
    if (!f->is_tensor) {
        mc_elab_error(e, f->name.span, MC_E0306, "a model takes tensors only: declare '%.*s' as a param of the file",
                      MC_FMT(f->name.text));
        return false;
    }
    int rank = mc_shape_dims(e, &f->type, dims);
    if (rank < 0 || !mc_shape_dtype(e, f->type.dtype, MOEC_F32, &dtype)) return false;
    const mc_type *type = mc_type_get(e->module, dtype, dims, rank);
    mc_value *v = mc_func_add_formal(e->frame->func, type, f->name.text);
    e->frame->builder.span = f->name.span;
    if (mc_type_is_float(type)) v = mc_tensor_cast(e, v, MOEC_F32);
    mc_scope_declare(e, f->name.text, mc_val_tensor(v, f->type.span));
    return true;
}

static bool
return_results(mc_elab *e, const mc_item *model)
{
    mc_val all = block_results(e, model, model->span);
    if (all.kind == MC_VAL_POISON) return false;
    mc_value *values[MC_MAX_PARTS];
    int n = 0;
    for (const mc_formal *f = model->results; f; f = f->next) {
        moec_dtype dtype;
        if (n == MC_MAX_PARTS) {
            mc_elab_error(e, model->span, MC_E0319, "more than %d results", MC_MAX_PARTS);
            return false;
        }
        mc_val v = all.kind == MC_VAL_TUPLE ? all.as.list.items[n] : all;
        values[n] = v.as.tensor;
        if (mc_type_is_float(values[n]->type)) {
            if (!mc_shape_dtype(e, f->type.dtype, MOEC_F32, &dtype)) return false;
            values[n] = mc_tensor_cast(e, values[n], dtype);
        }
        n++;
    }
    return mc_build_return(&e->frame->builder, values, n) != NULL;
}

bool
mc_run_model(mc_elab *e, const mc_item *model)
{
    mc_frame *frame = mc_frame_push(e, MC_FRAME_MODEL, model->name.text, model->name.span);
    frame->func->is_model = true;
    mc_scope_push(e, true, NULL);
    bool ok = true;
    for (const mc_formal *f = model->formals; f; f = f->next) ok = add_formal(e, f) && ok;
    if (ok) {
        mc_run run = mc_run_body(e, model->body);
        if (run == MC_RUN_ON) {
            mc_elab_error(e, model->name.span, MC_E0317, "the model returns nothing");
            ok = false;
        }
        ok = ok && run == MC_RUN_RETURNED && return_results(e, model);
    }
    mc_scope_pop(e);
    mc_frame_pop(e);
    return ok;
}
