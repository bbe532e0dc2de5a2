/* plan-ep: the experts' side of a program goes to the ranks that own the experts (docs/decisions/0008).
 *
 *   needs     stage tensor, experts expanded; fusion and derivatives done; the model's place block says which mesh
 *   keeps     in strict order every bit of every result and gradient; leaves stage dist
 *   refuses   what it cannot share out (E0803): inputs without a common first axis, parameters of experts that are
 *             computed, sums over all experts' rows; a mesh that cannot be (E0801)
 *
 * before:  %h = moe.ffn_up %x, %wg, %wu, %offsets, %tokens          f32[8, ...] weights
 *          %y = moe.ffn_down %h, %wd, %offsets, %tokens, %gates
 *
 * after, for ep = 4:
 *          %o, %r, .. = ep.route %offsets, %tokens, %ids {experts = 8, share = 2, ranks = 4, ..}
 *          %f = ep.send %x, %o, %r, ..
 *          %xr = ep.wait %f
 *          %h = moe.ffn_up %xr, %wg, %wu, %o, %r                    f32[2, ...] weights {of = 8}
 *          %yr = grouped_matmul %h, %wd, %o
 *          %g = ep.return %yr, %o, %r, ..
 *          %ya = ep.wait %g
 *          %y = moe.unpermute %ya, %offsets, %tokens, %gates
 *
 * Functions are rewritten callees first; a backward function, once it is known which of the values that forward keeps
 * for it are rows of experts.
 */
#include "passes/ep/dist.h"
#include "passes/ep/plan.h"

/* Of each rank in a step, when ways are chosen: many enough that bytes count more than messages. */
enum { PLANNED_TOKENS = 4096 };

/* The dimension that is shared out: axis 0 of the inputs. NULL, or why there is none. */
static const char *
find_rank_symbol(mc_dist *d, const mc_func *model)
{
    d->rank_sym = -1;
    for (size_t i = 0; i < model->formals.n; i++) {
        const mc_type *t = model->formals.items[i]->type;
        if (t->rank == 0 || t->dims[0].n_syms == 0) continue;
        bool plain = t->dims[0].n_syms == 1 && t->dims[0].mul == 1 && t->dims[0].add == 0;
        if (!plain || (d->rank_sym >= 0 && d->rank_sym != t->dims[0].syms[0]))
            return "its inputs have no common first axis";
        d->rank_sym = t->dims[0].syms[0];
    }
    return d->rank_sym < 0 ? "no input has a run-time first axis" : NULL;
}

static bool
is_called_by(const mc_func *f, const mc_func *from, int depth)
{
    if (f == from) return true;
    MC_FOR_OPS(op, from)
    {
        if (op->opcode == MC_OP_CALL && depth < 64 && is_called_by(f, mc_attr_func(op, "callee"), depth + 1))
            return true;
    }
    return false;
}

/* What forward keeps, as backward takes it: formals after the inputs, in the order of the results after the outputs. */
static void
retype_saved(mc_dist *d, mc_func *model, mc_func *backward)
{
    mc_str text = mc_module_meta(d->module, "train.outputs");
    int n_outputs = 0;
    for (size_t i = 0; i < text.len; i++) n_outputs = n_outputs * 10 + (text.data[i] - '0');
    for (int i = n_outputs; i < model->last->n_operands; i++) {
        const mc_type *now = mc_operand(model->last, i)->type;
        mc_value *formal = backward->formals.items[model->formals.n + (size_t)(i - n_outputs)];
        if (mc_dist_received(d, now)) formal->type = now;
    }
    MC_VEC(mc_func *) all = {0};
    MC_FOR_FUNCS(f, d->module) mc_vec_push(d->pass->scratch, &all, f);
    for (size_t i = all.n; i-- > 0;) { /* callers before callees */
        MC_FOR_OPS(op, all.items[i])
        {
            if (op->opcode != MC_OP_CALL) continue;
            mc_func *callee = mc_attr_func(op, "callee");
            for (int k = 0; k < op->n_operands; k++)
                if (mc_dist_received(d, mc_operand(op, k)->type))
                    callee->formals.items[k]->type = mc_operand(op, k)->type;
        }
    }
}

static bool
rewrite(mc_dist *d, mc_func *model, mc_func *backward)
{
    MC_FOR_FUNCS(f, d->module)
    {
        if (backward && is_called_by(f, backward, 0)) continue;
        if (!mc_dist_function(d, f)) return false;
    }
    if (!backward) return true;
    retype_saved(d, model, backward);
    MC_FOR_FUNCS(f, d->module)
    {
        if (is_called_by(f, backward, 0) && !mc_dist_function(d, f)) return false;
    }
    return true;
}

/* What codegen puts into the artefact; codegen/plan reads it. */
static void
describe(mc_dist *d)
{
    const mc_ep_mesh *mesh = &d->mesh;
    mc_str name = d->module->syms[d->rank_sym].name;
    bool parts = mesh->order == MC_EP_TREE && mc_module_meta(d->module, "train.backward").len;
    mc_str text = mc_strf(d->pass->scratch, "%lld %lld %lld %d %d %.*s", (long long)mesh->ep, (long long)mesh->dp,
                          (long long)mesh->per_node, (int)mesh->round_robin, (int)parts, MC_FMT(name));
    mc_module_set_meta(d->module, MC_STR("ep"), text);
    mc_buf buf = {0};
    if (d->plan) mc_ep_plan_text(d->plan, false, &buf);
    mc_module_set_meta(d->module, MC_STR("ep.plan"), mc_buf_view(&buf));
    mc_buf_fini(&buf);
}

mc_pass_result
mc_pass_plan_ep(mc_pass *p, mc_module *m)
{
    mc_dist d = {.pass = p, .module = m};
    mc_ep_mesh_read(m, &d.mesh, p->diags);
    if (d.mesh.state == MC_EP_MESH_WRONG) return MC_FAILED;
    bool single = d.mesh.state == MC_EP_MESH_NONE || d.mesh.ep * d.mesh.dp == 1;
    if (single && !mc_pass_option(p, "single")) return MC_UNCHANGED;
    if (single) d.mesh = (mc_ep_mesh){.ep = 1, .dp = 1, .tp = 1, .nodes = 1, .per_node = 1, .order = d.mesh.order};
    if (d.mesh.redundant)
        return mc_error(p->diags, (mc_span){0}, MC_E0803,
                        "copies of experts (place: redundant %lld) are planned by "
                        "'moec plan' only: leave them out to compile",
                        (long long)d.mesh.redundant),
               MC_FAILED;
    mc_func *model = mc_module_model(m);
    mc_str backward = mc_module_meta(m, "train.backward");
    const char *why = find_rank_symbol(&d, model);
    if (why && single) return MC_UNCHANGED;
    if (why)
        return mc_error(p->diags, model->span, MC_E0803, "'%.*s' cannot be shared out among ranks: %s",
                        MC_FMT(model->name), why),
               MC_FAILED;
    mc_ep_plan plan;
    mc_ep_settings settings = {.tokens = PLANNED_TOKENS, .trains = backward.len > 0};
    mc_ep_links_default(&settings.links);
    if (!single && !mc_ep_plan_make(m, &d.mesh, &settings, p->scratch, p->diags, &plan)) return MC_FAILED;
    d.plan = single ? NULL : &plan;
    d.first_sym = m->n_syms;
    d.all_sym = mc_symbol_get(m, mc_strf(m->arena, "ep%.*s", MC_FMT(m->syms[d.rank_sym].name)));
    if (d.all_sym < d.first_sym)
        return mc_error(p->diags, model->span, MC_E0803, "there is no room for the dimensions of all ranks"), MC_FAILED;
    m->syms[d.rank_sym].lo = 0;
    if (!rewrite(&d, model, backward.len ? mc_module_find(m, backward) : NULL)) return MC_FAILED;
    m->stage = MC_STAGE_DIST;
    describe(&d);
    return MC_CHANGED;
}
