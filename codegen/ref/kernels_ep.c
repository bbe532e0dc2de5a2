/* Operations between ranks, as one rank sees them when it is alone: rows go to itself. A module for several ranks does
 * not run here; the program of one rank, before plan-ep, is what it is compared with. */
#include "codegen/ref/num.h"

#include <string.h>

static bool
alone(mc_ref_op *k, const char *attr)
{
    if (mc_attr_int(k->op, attr) == 1) return true;
    return mc_ref_fail(k, MC_E0405, "the interpreter is one rank: compile the model to run it on %lld",
                       (long long)mc_attr_int(k->op, attr));
}

/* Gives the symbol its value, and the results their shapes. */
static bool
set_symbol(mc_ref_op *k, mc_str name, int64_t value)
{
    for (int i = 0; i < k->ref->module->n_syms; i++)
        if (mc_str_eq(k->ref->module->syms[i].name, name)) k->frame->syms[i] = value;
    return true;
}

static bool
allocate(mc_ref_op *k)
{
    for (int i = 0; i < k->op->n_results; i++) {
        const mc_type *t = k->op->results[i].type;
        int64_t dims[MC_MAX_RANK];
        if (!mc_ref_dims(k->ref, k->frame, t, k->op->span, dims)) return false;
        if (!mc_ref_tensor_init(&k->out[i], mc_ref_held(k->ref, t->dtype), dims, t->rank, k->arena))
            return mc_ref_fail(k, MC_E0319, "result %d is too large", i);
    }
    return true;
}

static void
copy(mc_ref_tensor *to, const mc_ref_tensor *from)
{
    for (int64_t i = 0; i < to->n; i++) mc_ref_tensor_set(to, i, mc_ref_tensor_get(from, i));
}

bool
mc_ref_EP_ROUTE(mc_ref_op *k)
{
    enum { OFFSETS, ROWS, ORDER, SENT, SENT_TOKENS, COUNTS };
    const mc_ref_tensor *offsets = k->in[0], *tokens = k->in[1];
    int64_t experts = mc_attr_int(k->op, "experts"), n_tokens = mc_ref_rows(k->in[2]), n_rows = 0;
    if (!alone(k, "ranks") || !mc_ref_check_offsets(k, offsets, experts, tokens->n)) return false;
    int64_t n = (int64_t)mc_ref_tensor_get(offsets, experts);
    int64_t *row = MC_NEW_N(k->arena, int64_t, n_tokens + 1);
    for (int64_t t = 0; t < n_tokens; t++) row[t] = -1;
    for (int64_t a = 0; a < n; a++) row[(int64_t)mc_ref_tensor_get(tokens, a)] = 0;
    for (int64_t t = 0; t < n_tokens; t++)
        if (row[t] == 0) row[t] = n_rows++;
    const mc_dim y = k->op->results[ROWS].type->dims[0];
    set_symbol(k, k->ref->module->syms[y.syms[0]].name, n);
    set_symbol(k, mc_attr_str(k->op, "received"), n_rows);
    if (!allocate(k)) return false;
    copy(&k->out[OFFSETS], offsets);
    for (int64_t a = 0; a < n; a++) {
        mc_ref_tensor_set(&k->out[ROWS], a, (double)row[(int64_t)mc_ref_tensor_get(tokens, a)]);
        mc_ref_tensor_set(&k->out[ORDER], a, (double)a);
        mc_ref_tensor_set(&k->out[SENT], a, (double)a);
    }
    for (int64_t t = 0; t < n_tokens; t++)
        if (row[t] >= 0) mc_ref_tensor_set(&k->out[SENT_TOKENS], row[t], (double)t);
    for (int i = 0; i < 4; i++) mc_ref_tensor_set(&k->out[COUNTS], i, (double)(i % 2 ? n_rows : n));
    return true;
}

/* y[i] = x[list[i]], or y[list[i]] = x[i] */
static bool
move_rows(mc_ref_op *k, const mc_ref_tensor *list, int64_t n, bool scatter)
{
    mc_ref_tensor *y = &k->out[0];
    int64_t width = k->in[0]->rank > 1 ? mc_ref_last(k->in[0]) : 1;
    for (int64_t i = 0; i < n; i++) {
        int64_t there = (int64_t)mc_ref_tensor_get(list, i), from = scatter ? i : there, to = scatter ? there : i;
        for (int64_t c = 0; c < width; c++)
            mc_ref_tensor_set(y, to * width + c, mc_ref_tensor_get(k->in[0], from * width + c));
    }
    return true;
}

enum { LIST_ORDER = 3, LIST_SENT = 4, LIST_TOKENS = 5, LIST_COUNTS = 6 };

bool
mc_ref_EP_SEND(mc_ref_op *k)
{
    return move_rows(k, k->in[LIST_TOKENS], (int64_t)mc_ref_tensor_get(k->in[LIST_COUNTS], 3), false);
}

bool
mc_ref_EP_SEND_ROWS(mc_ref_op *k)
{
    return move_rows(k, k->in[LIST_SENT], k->in[LIST_ORDER]->n, false);
}

bool
mc_ref_EP_RETURN(mc_ref_op *k)
{
    mc_ref_poison_from(&k->out[0], 0);
    return move_rows(k, k->in[LIST_SENT], k->in[LIST_ORDER]->n, true);
}

bool
mc_ref_EP_REDUCE(mc_ref_op *k)
{
    return move_rows(k, k->in[LIST_TOKENS], (int64_t)mc_ref_tensor_get(k->in[LIST_COUNTS], 3), true);
}

bool
mc_ref_EP_WAIT(mc_ref_op *k)
{
    copy(&k->out[0], k->in[0]);
    return true;
}

bool
mc_ref_EP_GATHER(mc_ref_op *k)
{
    const mc_dim all = k->op->results[0].type->dims[0];
    if (!alone(k, "ranks")) return false;
    int64_t value = k->in[0]->dims[0] / all.mul;
    mc_str name = mc_attr_str(k->op, "all");
    for (int i = 0; i < all.n_syms; i++)
        if (!mc_str_eq(k->ref->module->syms[all.syms[i]].name, name) && k->frame->syms[all.syms[i]] > 0)
            value /= k->frame->syms[all.syms[i]];
    set_symbol(k, name, value);
    if (!allocate(k)) return false;
    copy(&k->out[0], k->in[0]);
    return true;
}

bool
mc_ref_EP_OWN(mc_ref_op *k)
{
    copy(&k->out[0], k->in[0]);
    return true;
}

bool
mc_ref_EP_MERGE(mc_ref_op *k)
{
    const mc_dim merged = k->op->results[0].type->dims[0];
    if (!alone(k, "replicas")) return false;
    set_symbol(k, k->ref->module->syms[merged.syms[0]].name, k->in[0]->dims[0]);
    if (!allocate(k)) return false;
    copy(&k->out[0], k->in[0]);
    copy(&k->out[1], k->in[1]);
    return true;
}
