/* routing-losses: what training watches and adds about routes: the load of each expert, and the losses of the train
 * block.
 *
 *   needs     stage tensor, experts expanded; meta "train" (settings joined by "; ")
 *   keeps     the stage; every bit of the model's results
 *   refuses   (E0509) settings of the train block and stages of routes that act in training and that no pass carries
 *             out yet; aux and z where a route has no scores for all its experts
 *
 * before:  %s = softmax %logits
 *          %w, %ids = route.top %s, %s {k = 2}
 *          %kept, %kept_ids = moe.capacity %w, %ids …
 *          … = moe.dispatch %kept, %kept_ids {experts = 8}
 *
 * after:   … and before moe.dispatch, of the choices before any was dropped:
 *          %load = moe.load %w, %ids {experts = 8}      output %load {name = "mlp.load"}
 *          %aux = moe.balance %s, %ids                  output %aux {name = "aux", sum = true}
 *          %z = moe.z_loss %logits                      output %z {name = "z", sum = true}
 *
 * The losses are raw: their coefficients are cotangents. Scores that do not add up to 1 (sigmoid) are normalised first.
 * Shared experts, which a route with constant scores always chooses, have none of this; their scores become a fill, so
 * that nothing goes back through them.
 */
#include "ir/build.h"
#include "passes/match.h"
#include "passes/pass.h"
#include "passes/route.h"

#include <stdlib.h>

typedef struct settings {
    mc_str aux; /* "switch", "sequence", or empty */
    bool z;
} settings;

typedef struct watcher {
    mc_pass *pass;
    settings set;
    MC_VEC(mc_route) sites; /* of one function */
    mc_map names;           /* of one function */
    bool any;
} watcher;

/* ---- the train block ------------------------------------------------------------------------------------------- */

static bool
refuse_setting(mc_diags *d, mc_str name, mc_str text)
{
    return mc_error(d, (mc_span){0}, MC_E0509,
                    "'%.*s %.*s' of the train block is not carried out in this version; take it out", MC_FMT(name),
                    MC_FMT(text));
}

static bool
read_aux(mc_diags *d, mc_str text, settings *out)
{
    size_t end = 0;
    while (end < text.len && text.data[end] != ',') end++;
    mc_str kind = mc_str_slice(text, 0, end);
    if (!mc_str_is(kind, "switch") && !mc_str_is(kind, "sequence")) return refuse_setting(d, MC_STR("aux"), text);
    if (out->aux.len)
        return mc_error(d, (mc_span){0}, MC_E0509,
                        "the train block has two aux losses, '%.*s' and '%.*s': they have one name, so only one can be "
                        "carried out",
                        MC_FMT(out->aux), MC_FMT(kind));
    out->aux = kind;
    return true;
}

static bool
read_setting(mc_pass *p, mc_str line, settings *out)
{
    size_t at = 0;
    while (at < line.len && line.data[at] != ' ') at++;
    mc_str name = mc_str_slice(line, 0, at), text = mc_str_slice(line, at < line.len ? at + 1 : at, line.len);
    if (mc_str_is(name, "aux")) return read_aux(p->diags, text, out);
    if (mc_str_is(name, "z")) out->z = true;
    if (mc_str_is(name, "load_scale")) return refuse_setting(p->diags, name, text);
    bool drops = mc_str_is(name, "dropout") || mc_str_is(name, "expert_dropout");
    return !drops || strtod(mc_str_dup(p->scratch, text).data, NULL) == 0 || refuse_setting(p->diags, name, text);
}

static bool
read_settings(mc_pass *p, const mc_module *m, settings *out)
{
    mc_str rest = mc_module_meta(m, "train");
    bool ok = true;
    while (rest.len) {
        size_t end = 0;
        while (end < rest.len && rest.data[end] != ';') end++;
        ok = read_setting(p, mc_str_slice(rest, 0, end), out) && ok;
        while (end < rest.len && (rest.data[end] == ';' || rest.data[end] == ' ')) end++;
        rest = mc_str_slice(rest, end, rest.len);
    }
    const char *prefix = "train.route.";
    for (size_t i = 0; i < m->metas.n; i++) {
        const mc_meta *meta = &m->metas.items[i];
        if (!mc_str_starts(meta->key, prefix)) continue;
        ok = mc_error(p->diags, (mc_span){0}, MC_E0509,
                      "the route of '%.*s' has '%.*s', which acts in training only and is not carried out in this "
                      "version; take it out",
                      MC_FMT(mc_str_slice(meta->key, sizeof "train.route." - 1, meta->key.len)), MC_FMT(meta->value));
    }
    return ok;
}

/* ---- routes ---------------------------------------------------------------------------------------------------- */

/* A NaN under the clamp is one in the experts' input, too, and reaches the result that way. */
static bool
fill_scores(watcher *w, const mc_op *choice)
{
    mc_op *clamp = mc_def_is(mc_operand(choice, 0), MC_OP_CLAMP);
    if (!clamp) return true;
    mc_builder b = mc_builder_before(clamp, w->pass->diags);
    mc_named_attr value = MC_A_FLOAT("value", mc_attr_float(clamp, "lo"));
    const mc_type *type = clamp->results[0].type;
    mc_op *fill = mc_build_typed(&b, MC_OP_FILL, NULL, 0, &value, 1, &type, 1);
    if (!fill) return false;
    mc_value_replace_uses(&clamp->results[0], &fill->results[0]);
    w->any = true;
    return true;
}

static bool
is_watched(const mc_value *ids)
{
    for (const mc_use *u = ids->uses; u; u = u->next)
        if (u->user->opcode == MC_OP_MOE_LOAD) return true;
    return false;
}

/* expert_map sorts no weights: the ids as numbers stand in for them. */
static bool
stands_in(const mc_value *weights)
{
    const mc_op *cast = mc_def_is(weights, MC_OP_CAST);
    return cast && !mc_type_is_float(mc_operand(cast, 0)->type);
}

static bool
find_site(watcher *w, mc_op *dispatch)
{
    mc_route s = mc_route_of(dispatch);
    if (mc_route_is_constant(s.choice)) return fill_scores(w, s.choice);
    if (is_watched(s.ids)) return true;
    if (stands_in(s.weights)) s.weights = s.choice ? mc_result(s.choice, 0) : NULL;
    for (size_t i = 0; i < w->sites.n; i++) {
        if (w->sites.items[i].ids != s.ids) continue;
        if (!w->sites.items[i].weights) w->sites.items[i] = s;
        return true;
    }
    mc_vec_push(w->pass->scratch, &w->sites, s);
    return true;
}

/* ---- what is added --------------------------------------------------------------------------------------------- */

static bool
output(mc_builder *b, mc_value *x, mc_str name, bool sum)
{
    if (!x) return false;
    x->name = sum ? name : MC_STR("load");
    const mc_named_attr attrs[] = {MC_A_STR("name", name), MC_A_BOOL("sum", sum)};
    return mc_build(b, MC_OP_OUTPUT, &x, 1, attrs, sum ? 2 : 1) != NULL;
}

static bool
add_load(watcher *w, mc_builder *b, const mc_route *at, const mc_route_scores *s)
{
    if (!at->weights) return true;
    bool scored = s->logits && mc_dim_is_const(mc_type_last(s->logits->type));
    int64_t n = scored ? mc_dim_eval(mc_type_last(s->logits->type), NULL) : mc_attr_int(at->dispatch, "experts");
    mc_named_attr experts = MC_A_INT("experts", n);
    mc_value *load = mc_build1(b, MC_OP_MOE_LOAD, (mc_value *[]){at->weights, at->ids}, 2, &experts, 1);
    return output(b, load, mc_route_name(w->pass->scratch, s, "load", &w->names), false);
}

/* A route may apply sigmoid to the chosen scores only. */
static bool
sigmoid_after(const mc_op *choice)
{
    for (const mc_use *u = choice->results[0].uses; u; u = u->next)
        if (u->user->opcode == MC_OP_SIGMOID) return true;
    return false;
}

/* Scores of all experts that add up to 1 for each token. */
static mc_value *
normalised(mc_builder *b, const mc_route *at, const mc_route_scores *s)
{
    mc_value *v = s->activated;
    if (v && v->def->opcode == MC_OP_SOFTMAX) return v;
    if (!v && !sigmoid_after(at->choice)) return mc_build_unary(b, MC_OP_SOFTMAX, s->logits);
    if (!v) v = mc_build_unary(b, MC_OP_SIGMOID, s->logits);
    const mc_named_attr eps = MC_A_FLOAT("eps", 1e-20);
    return v ? mc_build1(b, MC_OP_ROUTE_RENORM, &v, 1, &eps, 1) : NULL;
}

static const char *
no_balance(const watcher *w, const mc_route *at, const mc_route_scores *s)
{
    if (!s->logits) return "the route has no scores for all its experts";
    if (at->choice->opcode == MC_OP_ROUTE_CHOOSE)
        return "the experts choose their tokens, so that all have the same load already";
    if (mc_str_is(w->set.aux, "sequence") && s->logits->type->rank < 3)
        return "its tokens are one axis, not [B, S]; give the model sequences, or take 'aux switch'";
    return NULL;
}

static bool
add_balance(watcher *w, mc_builder *b, const mc_route *at, const mc_route_scores *s)
{
    if (w->set.aux.len == 0) return true;
    const char *why = no_balance(w, at, s);
    if (why) return mc_error(b->diags, b->span, MC_E0509, "'aux %.*s' of the train block: %s", MC_FMT(w->set.aux), why);
    mc_value *p = normalised(b, at, s);
    const mc_named_attr per = MC_A_STR("per", mc_str_is(w->set.aux, "switch") ? MC_STR("batch") : w->set.aux);
    return p && output(b, mc_build1(b, MC_OP_MOE_BALANCE, (mc_value *[]){p, at->ids}, 2, &per, 1), MC_STR("aux"), true);
}

static bool
add_z(watcher *w, mc_builder *b, const mc_route_scores *s)
{
    if (!w->set.z) return true;
    if (!s->logits)
        return mc_error(b->diags, b->span, MC_E0509,
                        "'z' of the train block: the route has no scores for all its experts");
    return output(b, mc_build_unary(b, MC_OP_MOE_Z_LOSS, s->logits), MC_STR("z"), true);
}

static bool
watch(watcher *w, mc_func *f)
{
    w->sites.n = 0;
    mc_map_init(&w->names, w->pass->scratch);
    bool ok = true;
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_OUTPUT) mc_map_set(&w->names, mc_attr_str(op, "name"), w);
        if (op->opcode == MC_OP_MOE_DISPATCH) ok = find_site(w, op) && ok;
    }
    for (size_t i = 0; i < w->sites.n; i++) {
        const mc_route *at = &w->sites.items[i];
        mc_builder b = mc_builder_before(at->dispatch, w->pass->diags);
        mc_route_scores s = mc_route_scores_of(at->choice);
        ok = add_load(w, &b, at, &s) && add_balance(w, &b, at, &s) && add_z(w, &b, &s) && ok;
        w->pass->n_rewrites++;
    }
    if (w->sites.n) w->any = true;
    return ok;
}

static bool
has_experts(const mc_module *m)
{
    MC_FOR_FUNCS(f, m)
    {
        MC_FOR_OPS(op, f)
        {
            if (op->opcode == MC_OP_MOE_DISPATCH) return true;
        }
    }
    return false;
}

mc_pass_result
mc_pass_routing_losses(mc_pass *p, mc_module *m)
{
    watcher w = {.pass = p};
    bool ok = read_settings(p, m, &w.set);
    if ((w.set.aux.len || w.set.z) && !has_experts(m))
        ok = mc_error(p->diags, (mc_span){0}, MC_E0509,
                      "the train block has '%s', a loss of routes, and the model has no experts",
                      w.set.aux.len ? "aux" : "z");
    MC_FOR_FUNCS(f, m)
    {
        ok = watch(&w, f) && ok;
    }
    if (!ok) return MC_FAILED;
    return w.any ? MC_CHANGED : MC_UNCHANGED;
}
