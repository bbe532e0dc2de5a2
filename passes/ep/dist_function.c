/* One function: the experts' side of every moe.dispatch moves to the ranks that own the experts. The table says what
 * the operands of ops on experts' rows are; whatever else reads a value of that side is on it too, until rows go back.
 */
#include "passes/ep/dist.h"

#include "ir/infer.h"
#include "passes/match.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Operands: x, y rows of tokens or assignments, r, s which rows of x, y are read (all in order when absent), w a
 * parameter of all experts, o offsets, g a number for each assignment. */
static const struct form {
    mc_opcode opcode;
    const char *operands;
} forms[] = {
    {MC_OP_MOE_PERMUTE, "xrog"},   {MC_OP_GROUPED_MATMUL, "xwowwr"}, {MC_OP_MOE_FFN_UP, "xwworwwww"},
    {MC_OP_GROUPED_DX, "xworg"},   {MC_OP_GROUPED_DW, "xyorsg"},     {MC_OP_MOE_FFN_DOWN, "xworgww"},
    {MC_OP_MOE_UNPERMUTE, "xorg"},
};

static const char *
form_of(const mc_op *op)
{
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (forms[i].opcode == op->opcode) return forms[i].operands;
    return NULL;
}

static int
at(const char *form, char what)
{
    const char *p = strchr(form, what);
    return p ? (int)(p - form) : -1;
}

/* ---- what the other files use ------------------------------------------------------------------------------------ */

bool
mc_dist_refuse(const mc_dist *d, const mc_op *op, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return mc_error(d->pass->diags, op->span, MC_E0803, "'%s' cannot be shared out among %lld ranks: %s",
                    mc_op_info_of(op)->text, (long long)(d->mesh.ep * d->mesh.dp), text);
}

bool
mc_dist_received(const mc_dist *d, const mc_type *t)
{
    return t->rank > 0 && t->dims[0].n_syms > 0 && t->dims[0].syms[t->dims[0].n_syms - 1] >= d->first_sym &&
           t->dims[0].syms[t->dims[0].n_syms - 1] != d->all_sym;
}

mc_site *
mc_dist_side(const mc_dist *d, const mc_value *v)
{
    return v && v->id < d->n_side ? d->side[v->id] : NULL;
}

void
mc_dist_set_side(mc_dist *d, const mc_value *v, mc_site *side)
{
    if (v->id >= d->n_side) {
        uint32_t n = 2 * v->id + 64;
        mc_site **grown = MC_NEW_N(d->pass->scratch, mc_site *, n);
        if (d->n_side) memcpy(grown, d->side, d->n_side * sizeof *grown);
        d->side = grown;
        d->n_side = n;
    }
    d->side[v->id] = side;
}

mc_op *
mc_dist_remake(mc_dist *d, mc_op *op, mc_value *const *operands, const mc_type *const *types)
{
    mc_infer *in = MC_NEW(d->pass->scratch, mc_infer);
    *in = (mc_infer){.module = d->module,
                     .opcode = op->opcode,
                     .operands = operands,
                     .n_operands = op->n_operands,
                     .attrs = op->attrs,
                     .span = op->span,
                     .diags = d->pass->diags};
    if (mc_op_has(op, MC_TRAIT_TYPED)) {
        in->n_results = op->n_results;
        memcpy(in->results, types, op->n_results * sizeof *types);
    }
    if (!mc_infer_run(in)) return NULL;
    mc_op *made =
        mc_op_create(d->module, op->opcode, operands, op->n_operands, in->results, op->n_results, op->attrs, op->span);
    mc_op_insert_before(op->func, op, made);
    return made;
}

int
mc_dist_symbol(mc_dist *d, const mc_op *op, const char *format, int number)
{
    int sym = mc_symbol_get(d->module, mc_strf(d->module->arena, format, number));
    if (sym >= d->first_sym) return sym;
    mc_dist_refuse(d, op, sym < 0 ? "more than %d dimensions are needed" : "dimensions epX0.. are plan-ep's own (%d)",
                   sym < 0 ? (int)MC_MAX_SYMS : sym);
    return -1;
}

/* ---- parameters of experts --------------------------------------------------------------------------------------- */

/* w, a parameter of all experts or a cast of one, becomes a rank's share, for all its readers. */
static mc_value *
own_share(mc_dist *d, mc_site *s, mc_op *reader, mc_value *w)
{
    mc_op *def = w->def;
    if (s->share == s->experts || mc_dist_side(d, w)) return w;
    if (def && def->opcode == MC_OP_CAST) {
        mc_value *x = own_share(d, s, reader, mc_operand(def, 0));
        mc_op *cast = x ? mc_dist_remake(d, def, &x, NULL) : NULL;
        if (!cast) return NULL;
        mc_value_replace_uses(w, mc_result(cast, 0));
        mc_op_remove(def);
        mc_dist_set_side(d, mc_result(cast, 0), s);
        return mc_result(cast, 0);
    }
    if (!def || def->opcode != MC_OP_WEIGHT) {
        mc_dist_refuse(d, reader, "a parameter of its experts is computed, not stored");
        return NULL;
    }
    const mc_type *type = mc_site_type(s, w->type);
    mc_op *made = mc_op_create(d->module, MC_OP_WEIGHT, NULL, 0, &type, 1, def->attrs, def->span);
    mc_op_insert_before(def->func, def, made);
    mc_op_set_attr(made, "of", (mc_attr){.kind = MC_ATTR_INT, .as.i = s->experts});
    made->results[0].name = w->name;
    mc_value_replace_uses(w, mc_result(made, 0));
    mc_op_remove(def);
    mc_dist_set_side(d, mc_result(made, 0), s);
    return mc_result(made, 0);
}

/* ---- ops on experts' rows ---------------------------------------------------------------------------------------- */

/* The rows at operand i of a form, on the experts' side; *rows: the list that they are read by, or NULL. */
static mc_value *
rows_of(mc_dist *d, mc_site *s, mc_op *op, int i, int at_rows, mc_value **rows)
{
    mc_value *x = mc_operand(op, i), *list = at_rows >= 0 ? mc_operand(op, at_rows) : NULL;
    *rows = NULL;
    if (mc_dist_side(d, x) && list && op->opcode != MC_OP_MOE_UNPERMUTE && op->opcode != MC_OP_MOE_FFN_DOWN) {
        mc_dist_refuse(d, op, "it gathers rows that are the experts' already");
        return NULL;
    }
    if (mc_dist_side(d, x)) return x;
    if (list == mc_result(s->dispatch, 1)) {
        *rows = mc_result(s->route, 1);
        return mc_site_send(s, op, x);
    }
    if (list) { /* slots: a row for each assignment */
        mc_builder b = mc_builder_before(op, d->pass->diags);
        x = mc_build1(&b, MC_OP_MOE_PERMUTE, (mc_value *[]){x, list, mc_result(s->dispatch, 0)}, 3, NULL, 0);
    }
    return x ? mc_site_send_rows(s, op, x) : NULL;
}

static bool
map_form(mc_dist *d, mc_site *s, mc_op *op, const char *form, mc_value **operands)
{
    for (int i = 0; i < op->n_operands; i++) operands[i] = NULL;
    for (int i = 0; i < op->n_operands; i++) {
        mc_value *v = mc_operand(op, i), *list;
        int at_rows = form[i] == 'x' ? at(form, 'r') : at(form, 's');
        if (!v || form[i] == 'r' || form[i] == 's') continue;
        if (form[i] == 'x' || form[i] == 'y') {
            operands[i] = rows_of(d, s, op, i, at_rows, &list);
            if (at_rows >= 0) operands[at_rows] = list;
        } else if (form[i] == 'w') {
            operands[i] = own_share(d, s, op, v);
        } else if (form[i] == 'o') {
            operands[i] = mc_result(s->route, 0);
        } else {
            operands[i] = mc_dist_side(d, v) ? v : mc_site_send_rows(s, op, v);
        }
        if (!operands[i]) return false;
    }
    return true;
}

/* x of rows `list` as rows of their own, of all replicas. */
static mc_value *
merge(mc_dist *d, mc_site *s, mc_op *op, mc_value *x, mc_value *list, mc_value **all_offsets)
{
    mc_builder b = mc_builder_before(op, d->pass->diags);
    if (list) x = mc_build1(&b, MC_OP_MOE_PERMUTE, (mc_value *[]){x, list, mc_result(s->route, 0)}, 3, NULL, 0);
    return x ? mc_site_merge(s, op, x, all_offsets) : NULL;
}

/* grouped_dw in strict order: of the rows of all replicas, as one rank has them. */
static bool
merge_replicas(mc_dist *d, mc_site *s, mc_op *op, mc_value **operands)
{
    enum { DY, X, OFFSETS, DY_ROWS, X_ROWS, GATES };
    mc_value *all = NULL, *gates = operands[GATES];
    mc_builder b = mc_builder_before(op, d->pass->diags);
    operands[DY] = merge(d, s, op, operands[DY], operands[DY_ROWS], &all);
    operands[X] = operands[DY] ? merge(d, s, op, operands[X], operands[X_ROWS], &all) : NULL;
    if (!operands[X]) return false;
    if (gates) {
        const mc_dim column[] = {gates->type->dims[0], mc_dim_const(1)};
        mc_value *merged = mc_build_reshape(&b, gates, column, 2);
        merged = merged ? mc_site_merge(s, op, merged, &all) : NULL;
        operands[GATES] = merged ? mc_build_reshape(&b, merged, merged->type->dims, 1) : NULL;
        if (!operands[GATES]) return false;
    }
    operands[OFFSETS] = all;
    operands[DY_ROWS] = operands[X_ROWS] = NULL;
    return true;
}

static void
take_over(mc_dist *d, mc_site *s, mc_op *op, mc_op *made)
{
    for (int i = 0; i < op->n_results; i++) {
        mc_value *y = mc_result(made, i);
        y->name = op->results[i].name;
        if (s) mc_dist_set_side(d, y, s);
        mc_value_replace_uses(&op->results[i], y);
    }
    mc_op_remove(op);
}

static bool
move_form(mc_dist *d, mc_site *s, mc_op *op, const char *form)
{
    mc_value **operands = MC_NEW_N(d->pass->scratch, mc_value *, op->n_operands);
    if (!map_form(d, s, op, form, operands)) return false;
    bool summed = op->opcode == MC_OP_GROUPED_DW && d->mesh.dp > 1 && d->mesh.order == MC_EP_STRICT;
    if (summed && !merge_replicas(d, s, op, operands)) return false;
    mc_op *made = mc_dist_remake(d, op, operands, NULL);
    if (made) take_over(d, s, op, made);
    return made != NULL;
}

/* An op that is no form, but reads experts' rows: element by element, or row by row. */
static bool
move_other(mc_dist *d, mc_site *s, mc_op *op)
{
    mc_value **operands = MC_NEW_N(d->pass->scratch, mc_value *, op->n_operands);
    const mc_type **types = MC_NEW_N(d->pass->scratch, const mc_type *, op->n_results);
    for (int i = 0; i < op->n_operands; i++) {
        mc_value *v = operands[i] = mc_operand(op, i);
        bool sized = false;
        for (int k = 0; v && k < v->type->rank; k++) sized = sized || v->type->dims[k].n_syms > 0;
        if (sized && !mc_dist_side(d, v)) operands[i] = mc_site_send_rows(s, op, v);
        if (v && !operands[i]) return false;
    }
    if (op->opcode == MC_OP_LINEAR_DW || op->opcode == MC_OP_SUM_TO || op->opcode == MC_OP_EMBED_DW)
        return mc_dist_refuse(d, op, "it sums over the rows of all experts");
    for (int i = 0; i < op->n_results; i++) types[i] = mc_site_type(s, op->results[i].type);
    mc_op *made = mc_dist_remake(d, op, operands, types);
    if (made) take_over(d, s, op, made);
    return made != NULL;
}

/* ---- the way back ------------------------------------------------------------------------------------------------ */

/* The type that experts' rows y had on one rank. */
static const mc_type *
type_at_source(const mc_site *s, const mc_type *y)
{
    mc_dim dims[MC_MAX_RANK];
    memcpy(dims, y->dims, sizeof dims);
    dims[0] = s->assignments;
    return mc_type_get(s->dist->module, y->dtype, dims, y->rank);
}

/* Every row goes back, and is added where it would be on one rank. */
static bool
return_rows(mc_site *s, mc_op *unpermute)
{
    mc_value *y = mc_operand(unpermute, 0);
    mc_value *back = mc_site_return(s, unpermute, y, type_at_source(s, y->type));
    if (back) mc_op_set_operand(unpermute, 0, back);
    return back != NULL;
}

/* moe.ffn_down -> grouped_matmul at the owner, moe.unpermute at the source */
static bool
split_down(mc_dist *d, mc_site *s, mc_op *op)
{
    enum { H, W, OFFSETS, TOKENS, GATES, BIAS, SCALE };
    const int parameters[] = {W, BIAS, SCALE};
    mc_value *own[3] = {NULL}, *list;
    for (int i = 0; i < 3; i++)
        if (mc_operand(op, parameters[i]) && !(own[i] = own_share(d, s, op, mc_operand(op, parameters[i]))))
            return false;
    mc_value *h = rows_of(d, s, op, H, -1, &list);
    mc_builder b = mc_builder_before(op, d->pass->diags);
    mc_value *operands[] = {h, own[0], mc_result(s->route, 0), own[1], own[2]};
    const mc_named_attr wide = MC_A_DTYPE("to", MOEC_F32), to = MC_A_DTYPE("to", op->results[0].type->dtype);
    bool narrow = h && h->type->dtype != MOEC_F32; /* sums are f32 all the way */
    mc_value *y = h ? mc_build1(&b, MC_OP_GROUPED_MATMUL, operands, 5, &wide, narrow) : NULL;
    mc_value *back = y ? mc_site_return(s, op, y, type_at_source(s, y->type)) : NULL;
    if (!back) return false;
    mc_value *sum[] = {back, mc_operand(op, OFFSETS), mc_operand(op, TOKENS), mc_operand(op, GATES)};
    mc_op *made = mc_build_typed(&b, MC_OP_MOE_UNPERMUTE, sum, 4, &to, narrow, &op->results[0].type, 1);
    if (made) take_over(d, NULL, op, made);
    return made != NULL;
}

/* A token's rows are added by the owner, one row for each (token, rank) goes back. */
static bool
reduce_rows(mc_dist *d, mc_site *s, mc_op *op, const char *form)
{
    mc_value **operands = MC_NEW_N(d->pass->scratch, mc_value *, op->n_operands);
    const mc_type *was = op->results[0].type;
    if (!map_form(d, s, op, form, operands)) return false;
    operands[at(form, 'r')] = mc_result(s->route, 1);
    const mc_dim dims[] = {s->rows, mc_type_last(was)};
    const mc_type *type = mc_type_get(d->module, was->dtype, dims, 2);
    mc_op *made = mc_dist_remake(d, op, operands, &type);
    mc_value *sum = made ? mc_site_reduce(s, op, mc_result(made, 0), was) : NULL;
    if (!sum) return false;
    sum->name = op->results[0].name;
    mc_value_replace_uses(&op->results[0], sum);
    mc_op_remove(op);
    return true;
}

/* An op whose rows of experts become rows of tokens. */
static bool
end_site(mc_dist *d, mc_site *s, mc_op *op, const char *form)
{
    bool tokens = mc_operand(op, at(form, 'r')) == mc_result(s->dispatch, 1);
    if (d->mesh.order == MC_EP_TREE && tokens) return reduce_rows(d, s, op, form);
    return op->opcode == MC_OP_MOE_UNPERMUTE ? return_rows(s, op) : split_down(d, s, op);
}

/* ---- the sweep --------------------------------------------------------------------------------------------------- */

/* Which site op works for: that of its offsets, else that of its operands. */
static mc_site *
site_of(const mc_dist *d, const mc_op *op)
{
    const char *form = form_of(op);
    for (size_t i = 0; form && i < d->sites.n; i++)
        if (mc_operand(op, at(form, 'o')) == mc_result(d->sites.items[i]->dispatch, 0)) return d->sites.items[i];
    for (int i = 0; i < op->n_operands; i++)
        if (mc_dist_side(d, mc_operand(op, i))) return mc_dist_side(d, mc_operand(op, i));
    return NULL;
}

/* A call of a function whose results are on the experts' side now. */
static bool
retype_call(mc_dist *d, mc_op *op)
{
    const mc_op *end = mc_attr_func(op, "callee")->last;
    const mc_type **types = MC_NEW_N(d->pass->scratch, const mc_type *, op->n_results);
    bool changed = false;
    for (int i = 0; i < op->n_results; i++) {
        const mc_type *now = mc_operand(end, i)->type;
        types[i] = mc_dist_received(d, now) ? now : op->results[i].type;
        changed = changed || types[i] != op->results[i].type;
    }
    if (!changed) return true;
    mc_value **operands = MC_NEW_N(d->pass->scratch, mc_value *, op->n_operands);
    for (int i = 0; i < op->n_operands; i++) operands[i] = mc_operand(op, i);
    mc_op *made =
        mc_op_create(d->module, MC_OP_CALL, operands, op->n_operands, types, op->n_results, op->attrs, op->span);
    mc_op_insert_before(op->func, op, made);
    take_over(d, NULL, op, made);
    return true;
}

/* What the model gives out are the tokens' rows; what it keeps for backward may be anything. */
static bool
check_outputs(const mc_dist *d, const mc_op *end)
{
    mc_str text = mc_module_meta(d->module, "train.outputs");
    int n = text.len ? 0 : end->n_operands;
    for (size_t i = 0; i < text.len; i++) n = n * 10 + (text.data[i] - '0');
    for (int i = 0; end->func->is_model && i < n && i < end->n_operands; i++)
        if (mc_dist_side(d, mc_operand(end, i))) return mc_dist_refuse(d, end, "result %d is rows of experts", i);
    return true;
}

static bool
rewrite(mc_dist *d, mc_op *op)
{
    bool done;
    if (op->opcode == MC_OP_CALL) return retype_call(d, op);
    if (op->opcode == MC_OP_RETURN) return check_outputs(d, op);
    if (op->opcode == MC_OP_ACCUMULATE || op->opcode == MC_OP_WEIGHT) return true;
    if (op->opcode == MC_OP_EP_ROUTE) return true;
    mc_site *s = site_of(d, op);
    if (!s) return mc_dist_gather_op(d, op, &done);
    const char *form = form_of(op);
    bool ends = op->opcode == MC_OP_MOE_UNPERMUTE || op->opcode == MC_OP_MOE_FFN_DOWN;
    if (op->opcode == MC_OP_MOE_UNPERMUTE && !mc_dist_side(d, mc_operand(op, 0))) return true;
    if (op->opcode == MC_OP_MOE_PERMUTE && mc_operand(op, 1) == mc_result(s->dispatch, 2)) return true;
    if (ends) return end_site(d, s, op, form);
    return form ? move_form(d, s, op, form) : move_other(d, s, op);
}

/* In backward functions rows that forward kept come in as formals: their type says which symbols the site sets. */
static int
number_of(const mc_dist *d, const mc_op *dispatch, int next)
{
    for (const mc_use *u = mc_result(dispatch, 0)->uses; u; u = u->next) {
        for (int i = 0; i < u->user->n_operands; i++) {
            const mc_value *v = mc_operand(u->user, i);
            while (v && v->def && v->def->n_operands && !mc_dist_received(d, v->type)) v = mc_operand(v->def, 0);
            if (!v || !mc_dist_received(d, v->type)) continue;
            mc_str name = d->module->syms[v->type->dims[0].syms[0]].name;
            return name.data[name.len - 1] - '0';
        }
    }
    return next;
}

/* op, and what it needs, before `front`: rows that forward kept are not read before their number is known. */
static void
hoist(mc_op *op, mc_op *front)
{
    const mc_op *before = front;
    while (before && before != op) before = before->prev;
    if (before) return; /* and so does all that it needs */
    for (int i = 0; i < op->n_operands; i++) {
        const mc_value *v = mc_operand(op, i);
        if (v && v->def) hoist(v->def, front);
    }
    mc_op_move_before(front, op);
}

/* The first op that reads rows which forward kept; NULL: none. */
static mc_op *
first_reader(const mc_dist *d, mc_func *f)
{
    MC_FOR_OPS(op, f)
    {
        for (int i = 0; i < op->n_operands; i++)
            if (mc_operand(op, i) && mc_dist_received(d, mc_operand(op, i)->type)) return op;
    }
    return NULL;
}

static bool
open_sites(mc_dist *d, mc_func *f)
{
    MC_VEC(mc_op *) found = {0};
    int next = 0;
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_MOE_DISPATCH) mc_vec_push(d->pass->scratch, &found, op);
    }
    mc_op *front = first_reader(d, f);
    for (size_t i = 0; i < found.n; i++) {
        mc_site *s = MC_NEW(d->pass->scratch, mc_site);
        if (front) hoist(found.items[i], front);
        int number = front ? number_of(d, found.items[i], next) : next;
        next = number >= next ? number + 1 : next;
        if (number > 9) return mc_dist_refuse(d, found.items[i], "a function has more than ten of them");
        if (!mc_site_open(d, found.items[i], number, s)) return false;
        mc_vec_push(d->pass->scratch, &d->sites, s);
    }
    return true;
}

bool
mc_dist_function(mc_dist *d, mc_func *f)
{
    bool ok = true;
    d->sites.n = 0;
    mc_map_init(&d->gathered, d->pass->scratch);
    if (!open_sites(d, f)) return false;
    for (size_t i = 0; i < f->formals.n; i++) {
        const mc_value *v = f->formals.items[i];
        for (size_t k = 0; mc_dist_received(d, v->type) && k < d->sites.n; k++)
            if (d->sites.items[k]->received.syms[0] == v->type->dims[0].syms[0])
                mc_dist_set_side(d, v, d->sites.items[k]);
    }
    mc_op *next;
    for (mc_op *op = f->first; op && ok; op = next) {
        next = op->next;
        ok = rewrite(d, op);
    }
    if (ok) mc_dist_overlap(d, f);
    return ok;
}
