/* absorb-mla: latent attention reads the cached latents themselves. Keys and values that are one matrix times the
 * latent of each position need not be made: the matrix goes to the other side of both products.
 *
 *   needs     stage tensor or dist, canonical operands, equal subexpressions merged
 *   keeps     the stage; results up to rounding, because sums are taken in another order
 *   refuses   (remark R0502 says why) when the expanded keys or values have another use, the latent is not cached, the
 *             matrix has a bias or is not a stored weight, query and key are cut at different places, the rotated part
 *             of the key is not one head for all, or there are sinks
 *
 * before:  %e = linear %c, %w                                      for every cached position
 *          %kn, %v = split (reshape %e) {sizes = [nope, value]}
 *          %o = sdpa (concat %qn, %qr), (concat %kn, (expand %kr)), %v {scale = ...}
 *
 * after:   %q = head_linear %qn, %w {begin = 0, end = nope, transposed = true}
 *          %l = latent_sdpa %q, %c, %qr, %kr {scale = ...}
 *          %o = head_linear %l, %w {begin = nope, end = nope + value}
 *
 * A step then costs a matrix for each new position, not for each cached one; attention itself costs more, because
 * latents are wider than keys. The same form serves long and short steps, so that both give the same bits.
 */
#include "ir/build.h"
#include "passes/match.h"
#include "passes/pass.h"

typedef struct latent {
    mc_op *sdpa, *key, *split, *reshape, *linear;
    mc_op *query, *expand; /* set by refusal; no expand: there is one head */
    mc_value *k_rot;
} latent;

static bool
is_last_axis(const mc_op *concat)
{
    int64_t axis = mc_attr_int(concat, "axis");
    return axis == -1 || axis == concat->results[0].type->rank - 1;
}

/* Two parts joined along the last axis; else NULL. */
static mc_op *
joined(const mc_value *v)
{
    mc_op *concat = mc_def_is(v, MC_OP_CONCAT);
    return concat && concat->n_operands == 2 && is_last_axis(concat) ? concat : NULL;
}

/* Does it look like latent attention at all? */
static bool
match(mc_op *sdpa, latent *out)
{
    mc_op *key = joined(mc_operand(sdpa, 1)), *split = mc_def_is(mc_operand(sdpa, 2), MC_OP_SPLIT);
    if (!key || !split || split->n_results != 2 || mc_operand(sdpa, 2) != &split->results[1]) return false;
    if (mc_operand(key, 0) != &split->results[0]) return false;
    mc_op *reshape = mc_def_is(mc_operand(split, 0), MC_OP_RESHAPE);
    mc_op *linear = reshape ? mc_def_is(mc_operand(reshape, 0), MC_OP_LINEAR) : NULL;
    if (!linear) return false;
    *out = (latent){.sdpa = sdpa, .key = key, .split = split, .reshape = reshape, .linear = linear};
    return true;
}

static const char *
other_use(mc_pass *p, const latent *l)
{
    const mc_value *only_here[] = {&l->key->results[0], &l->split->results[0], &l->split->results[1],
                                   &l->reshape->results[0], &l->linear->results[0]};
    for (size_t i = 0; i < sizeof only_here / sizeof *only_here; i++)
        if (!mc_value_has_one_use(only_here[i]))
            return mc_strf(p->scratch, "the '%s' has another use", mc_op_info_of(only_here[i]->def)->text).data;
    return NULL;
}

/* [B, C, channels] becomes [B, C, heads, channels / heads], with the heads of the query. */
static bool
cuts_into_heads(const latent *l)
{
    const mc_type *from = l->linear->results[0].type, *to = l->reshape->results[0].type;
    const mc_type *q = mc_operand(l->sdpa, 0)->type;
    return from->rank == 3 && to->rank == 4 && mc_dim_eq(from->dims[0], to->dims[0]) &&
           mc_dim_eq(from->dims[1], to->dims[1]) && mc_dim_eq(to->dims[2], q->dims[2]);
}

/* Why it must stay; NULL: it can be absorbed, and the rest of *l is set. */
static const char *
refusal(mc_pass *p, latent *l)
{
    if (mc_operand_named(l->sdpa, "sinks")) return "it has sinks";
    const char *why = other_use(p, l);
    if (why) return why;
    if (!cuts_into_heads(l)) return "keys and values are not expanded for each query head";
    if (mc_operand_named(l->linear, "bias") || mc_operand_named(l->linear, "residual"))
        return "the expansion adds something to the product";
    if (!mc_def_is(mc_operand(l->linear, 1), MC_OP_WEIGHT)) return "the expanding matrix is computed, not stored";
    if (!mc_def_is(mc_operand(l->linear, 0), MC_OP_CACHE)) return "the latent is not cached";
    l->query = joined(mc_operand(l->sdpa, 0));
    if (!l->query || !mc_dim_eq(mc_type_last(mc_operand(l->query, 0)->type), mc_type_last(l->split->results[0].type)))
        return "query and key are cut at different places";
    mc_value *rotated = mc_operand(l->key, 1);
    l->expand = mc_def_is(rotated, MC_OP_EXPAND);
    l->k_rot = l->expand ? mc_operand(l->expand, 0) : rotated;
    if (l->k_rot->type->rank != 4 || !mc_dim_eq(l->k_rot->type->dims[2], mc_dim_const(1)))
        return "the rotated part of the key is not one head for all";
    return NULL;
}

static mc_value *
head_linear(mc_builder *b, const latent *l, mc_value *x, int64_t begin, int64_t end, bool transposed)
{
    mc_named_attr attrs[] = {MC_A_INT("begin", begin), MC_A_INT("end", end), MC_A_BOOL("transposed", transposed)};
    mc_value *operands[] = {x, mc_operand_named(l->linear, "w"), mc_operand_named(l->linear, "scale")};
    return mc_build1(b, MC_OP_HEAD_LINEAR, operands, 3, attrs, 3);
}

static mc_value *
absorbed(mc_builder *b, const latent *l)
{
    int64_t nope = mc_type_last(l->split->results[0].type).mul; /* a constant, as what a split makes is */
    int64_t both = mc_type_last(l->reshape->results[0].type).mul;
    mc_value *q = head_linear(b, l, mc_operand(l->query, 0), 0, nope, true);
    if (!q) return NULL;
    mc_named_attr attrs[] = {
        MC_A_FLOAT("scale", mc_attr_float(l->sdpa, "scale")), MC_A_BOOL("causal", mc_attr_bool(l->sdpa, "causal")),
        MC_A_INT("window", mc_attr_int(l->sdpa, "window")), MC_A_INT("chunk", mc_attr_int(l->sdpa, "chunk")),
        MC_A_FLOAT("softcap", mc_attr_float(l->sdpa, "softcap"))};
    mc_value *operands[] = {q, mc_operand(l->linear, 0), mc_operand(l->query, 1), l->k_rot,
                            mc_operand_named(l->sdpa, "select")};
    mc_value *o = mc_build1(b, MC_OP_LATENT_SDPA, operands, 5, attrs, sizeof attrs / sizeof *attrs);
    return o ? head_linear(b, l, o, nope, both, false) : NULL;
}

static void
remove_unused(mc_op *op)
{
    for (int i = 0; i < op->n_results; i++)
        if (mc_value_has_uses(&op->results[i])) return;
    mc_op_remove(op);
}

static mc_pass_result
absorb(mc_pass *p, mc_op *sdpa)
{
    latent l;
    if (!match(sdpa, &l)) return MC_UNCHANGED;
    const char *why = refusal(p, &l);
    if (why) {
        mc_remark(p->diags, sdpa->span, MC_R0502, "keys and values are expanded for every cached position: %s", why);
        return MC_UNCHANGED;
    }
    if (!mc_fuel(p, sdpa)) return MC_UNCHANGED;
    mc_builder b = mc_builder_before(sdpa, p->diags);
    mc_value *o = absorbed(&b, &l);
    if (!o) return MC_FAILED;
    mc_remark(p->diags, sdpa->span, MC_R0501,
              "attention reads the cached latents: their expansion is part of the query");
    o->name = sdpa->results[0].name;
    mc_value_replace_uses(&sdpa->results[0], o);
    mc_op *gone[] = {sdpa, l.key, l.expand, l.split, l.reshape, l.linear, l.query};
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++)
        if (gone[i]) remove_unused(gone[i]);
    return MC_CHANGED;
}

static mc_pass_result
run(mc_pass *p, mc_func *f)
{
    mc_pass_result result = MC_UNCHANGED;
    mc_op *next;
    for (mc_op *op = f->first; op; op = next) {
        next = op->next;
        mc_pass_result r = op->opcode == MC_OP_SDPA ? absorb(p, op) : MC_UNCHANGED;
        if (r == MC_FAILED) return r;
        if (r == MC_CHANGED) result = r;
    }
    return result;
}

mc_pass_result
mc_pass_absorb_mla(mc_pass *p, mc_module *m)
{
    return mc_pass_over_funcs(p, m, run);
}
