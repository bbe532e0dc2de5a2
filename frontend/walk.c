/* Visits every expression. Chains like a + b + c lean to the left without bound in the parser, so the depth is counted
 * here and cut off. */
#include "frontend/walk.h"

enum { MAX_DEPTH = 1500 };

typedef struct walk {
    mc_visit_fn *visit;
    void *context;
    int depth;
} walk;

static void walk_expr(walk *w, const mc_expr *x);

static void
walk_args(walk *w, const mc_arg *args)
{
    for (; args; args = args->next) walk_expr(w, args->value);
}

static void
walk_stages(walk *w, const mc_route_stage *stages)
{
    for (; stages; stages = stages->next) walk_args(w, stages->args);
}

static void
walk_expr(walk *w, const mc_expr *x)
{
    if (!x || w->depth >= MAX_DEPTH) return;
    w->depth++;
    w->visit(w->context, x);
    walk_expr(w, x->a);
    walk_expr(w, x->b);
    walk_expr(w, x->c);
    walk_args(w, x->items);
    walk_stages(w, x->stages);
    for (const mc_clause *c = x->clauses; c; c = c->next) {
        walk_expr(w, c->count);
        walk_expr(w, c->of);
        walk_stages(w, c->stages);
        walk_args(w, c->args);
    }
    w->depth--;
}

static void
walk_body(walk *w, const mc_stmt *s)
{
    if (w->depth >= MAX_DEPTH) return;
    w->depth++;
    for (; s; s = s->next) {
        walk_args(w, s->type.dims);
        walk_expr(w, s->value);
        walk_args(w, s->values);
        walk_body(w, s->body);
        walk_body(w, s->otherwise);
    }
    w->depth--;
}

void
mc_walk_expr(const mc_expr *x, mc_visit_fn *visit, void *context)
{
    walk w = {visit, context, 0};
    walk_expr(&w, x);
}

void
mc_walk_args(const mc_arg *args, mc_visit_fn *visit, void *context)
{
    walk w = {visit, context, 0};
    walk_args(&w, args);
}

void
mc_walk_body(const mc_stmt *body, mc_visit_fn *visit, void *context)
{
    walk w = {visit, context, 0};
    walk_body(&w, body);
}

void
mc_walk_item(const mc_item *item, mc_visit_fn *visit, void *context)
{
    walk w = {visit, context, 0};
    walk_expr(&w, item->value);
    walk_args(&w, item->args);
    for (const mc_formal *f = item->formals; f; f = f->next) {
        walk_args(&w, f->type.dims);
        walk_expr(&w, f->initial);
    }
    for (const mc_formal *f = item->results; f; f = f->next) walk_args(&w, f->type.dims);
    walk_body(&w, item->body);
    for (const mc_setting *s = item->settings; s; s = s->next) walk_args(&w, s->args);
    for (const mc_rule *r = item->rules; r; r = r->next) walk_stages(&w, r->stages);
}
