/* repeat: each iteration is built as a function of its own, then compared with the kinds seen before; only a new kind
 * is kept, and the iteration becomes a call of its kind. Outer variables that the body assigns come back as results. */
#include "frontend/elab.h"

#include "ir/edit.h"

typedef struct kind {
    uintptr_t id;
    mc_func *func;
} kind;

typedef struct repeating {
    mc_elab *e;
    const mc_stmt *stmt;
    mc_frame *frame;
    MC_VEC(mc_value *) results; /* values of the frame that go out, each once */
    MC_VEC(kind) kinds;
    mc_op *call;
    bool failed;
} repeating;

static int
capture_of(const mc_frame *f, const mc_value *v)
{
    for (size_t i = 0; i < f->captures.n; i++) {
        if (f->captures.items[i].formal == v) return (int)i;
    }
    return -1;
}

static int
result_of(const repeating *r, const mc_value *v)
{
    for (size_t i = 0; i < r->results.n; i++) {
        if (r->results.items[i] == v) return (int)i;
    }
    return -1;
}

/* Before the call exists (call NULL): notes which values must be results. After it: the value outside. */
static mc_value *
go_out(repeating *r, mc_value *v)
{
    if (v->func != r->frame->func) return v;
    int capture = capture_of(r->frame, v);
    if (capture >= 0) return r->frame->captures.items[capture].outer;
    int at = result_of(r, v);
    if (r->call) return mc_result(r->call, at);
    if (at < 0) mc_vec_push(r->e->arena, &r->results, v);
    return v;
}

static mc_val carry(repeating *r, mc_val v);

static mc_val
carry_fn(repeating *r, mc_val v)
{
    if (!v.as.fn->has_tensor || !mc_elab_step(r->e, r->stmt->span)) return v;
    mc_fn *copy = mc_arena_copy(r->e->arena, v.as.fn, sizeof *copy);
    copy->args = mc_arena_copy(r->e->arena, copy->args, copy->n_args * sizeof *copy->args);
    for (size_t i = 0; i < copy->n_args; i++) copy->args[i].value = carry(r, copy->args[i].value);
    v.as.fn = copy;
    return v;
}

static mc_val
carry(repeating *r, mc_val v)
{
    if (v.kind == MC_VAL_TENSOR) v.as.tensor = go_out(r, v.as.tensor);
    if (v.kind == MC_VAL_FN) return carry_fn(r, v);
    if (v.kind == MC_VAL_ROUTE) {
        mc_route_val *copy = mc_arena_copy(r->e->arena, v.as.route, sizeof *copy);
        copy->weights = go_out(r, copy->weights);
        copy->ids = go_out(r, copy->ids);
        v.as.route = copy;
    }
    return v;
}

static void
poison_assigned(repeating *r)
{
    for (size_t i = 0; i < r->frame->assigned.n; i++) r->frame->assigned.items[i]->value = mc_val_poison();
    r->failed = true;
}

/* The function of this iteration's kind; the one just built is dropped when the kind is known. */
static mc_func *
settle_kind(repeating *r)
{
    mc_func *f = r->frame->func;
    kind k = {mc_kind_of(r->e, f), f};
    for (size_t i = 0; i < r->kinds.n; i++) {
        if (r->kinds.items[i].id != k.id) continue;
        mc_kind_remove(f);
        return r->kinds.items[i].func;
    }
    mc_vec_push(r->e->arena, &r->kinds, k);
    return f;
}

static void
finish_iteration(repeating *r, mc_str scope)
{
    mc_elab *e = r->e;
    mc_frame *f = r->frame;
    r->results.n = 0;
    r->call = NULL;
    for (size_t i = 0; i < f->assigned.n; i++) carry(r, f->assigned.items[i]->value);
    f->builder.span = r->stmt->span;
    if (r->results.n > MC_MAX_PARTS) {
        mc_elab_error(e, r->stmt->span, MC_E0319, "a repeat carries more than %d tensors", MC_MAX_PARTS);
        poison_assigned(r);
        return;
    }
    mc_build_return(&f->builder, r->results.items, (int)r->results.n);
    mc_func *callee = settle_kind(r);
    mc_value **args = MC_NEW_N(e->arena, mc_value *, f->captures.n + 1);
    for (size_t i = 0; i < f->captures.n; i++) args[i] = f->captures.items[i].outer;
    e->frame->builder.span = r->stmt->span;
    r->call = mc_build_call(&e->frame->builder, callee, scope, args, (int)f->captures.n);
    if (!r->call) {
        e->n_errors++;
        poison_assigned(r);
        return;
    }
    for (size_t i = 0; i < f->assigned.n; i++) {
        mc_binding *b = f->assigned.items[i];
        mc_binding_set(e, b, carry(r, b->value));
    }
}

static void
run_iteration(repeating *r, int64_t index)
{
    mc_elab *e = r->e;
    const mc_stmt *s = r->stmt;
    mc_str number = mc_strf(e->arena, "%lld", (long long)index);
    mc_str scope = s->label.text.len ? mc_strf(e->arena, "%.*s.%.*s", MC_FMT(s->label.text), MC_FMT(number)) : number;
    mc_label_push(e, scope);
    r->frame = mc_frame_push(e, MC_FRAME_REPEAT, mc_elab_path(e, 0, MC_STR(""), MC_STR("")), s->span);
    mc_scope_push(e, false, NULL);
    if (s->name.text.len) mc_scope_declare(e, s->name.text, mc_val_int(index, s->name.span));
    int before = e->n_errors;
    mc_run run = mc_run_body(e, s->body);
    if (run == MC_RUN_RETURNED)
        mc_elab_error(e, s->span, MC_E0330, "'return' cannot stand inside repeat: every iteration is run");
    mc_scope_pop(e);
    mc_frame_pop(e);
    if (run != MC_RUN_ON || e->n_errors != before) {
        poison_assigned(r);
    } else {
        finish_iteration(r, scope);
    }
    mc_label_pop(e, true);
}

mc_run
mc_run_repeat(mc_elab *e, const mc_stmt *s)
{
    int64_t n;
    if (!mc_eval_int(e, s->value, "the number of repetitions", 0, MC_MAX_REPEAT, &n)) return MC_RUN_FAILED;
    if (e->frame->kind == MC_FRAME_EXPERT) {
        mc_elab_error(e, s->span, MC_E0331, "repeat inside an expert is not supported in this version");
        return MC_RUN_FAILED;
    }
    repeating r = {.e = e, .stmt = s};
    for (int64_t i = 0; i < n && !r.failed && !e->fatal; i++) run_iteration(&r, i);
    return r.failed ? MC_RUN_FAILED : MC_RUN_ON;
}
