/* plan-memory: gives every value its place.
 *
 *   needs     stage plan
 *   keeps     stage plan; every bit
 *   refuses   values whose size in bytes is no product of at most three symbols (E0314)
 *
 * before:  %h = rmsnorm %x, %w {eps = 1e-05} : f32[B, S, 64]
 *
 * after:   %h = rmsnorm %x, %w {eps = 1e-05} : f32[B, S, 64] at slot 0
 *
 * Formals are ARG, packed WEIGHT, const CONST, reshape and ep.wait VIEW of their operand, returned values RESULT
 * (through a copy when the value is no op's own result, or is returned twice), histories read only as keys and values
 * STATE, all others SLOT. What linear_dw, grouped_dw or embed_dw make for an accumulate alone is a VIEW of the
 * gradient: they add to it.
 *
 * Slots are regions of the function's frame. One sweep in order of execution gives each value the free slot that fits
 * best among those whose sizes have the same symbols; sizes with different symbols cannot be compared before run time.
 * Nothing happens in place: a result's slot is never one of its operands'.
 */
#include "ir/build.h"
#include "passes/match.h"
#include "passes/pass.h"

typedef struct region {
    MC_VEC(mc_dim) bytes; /* none of them at least as great as another for every value of the symbols */
    bool busy;
} region;

typedef struct planner {
    mc_pass *pass;
    mc_module *module;
    int64_t *last_use; /* by id of a value that lies in a slot: position of the last op that reads it */
    MC_VEC(region) regions;
} planner;

/* The value that v lies in, through views. */
static mc_value *
root(mc_value *v)
{
    return v->place.kind == MC_PLACE_VIEW ? v->place.base : v;
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

static bool
needs_copy(const mc_op *end, int i)
{
    const mc_value *v = mc_operand(end, i);
    if (!v->def) return true;
    for (int k = 0; k < i; k++)
        if (mc_operand(end, k) == v) return true;
    return v->def->opcode == MC_OP_RESHAPE || v->def->opcode == MC_OP_EP_WAIT || v->def->opcode == MC_OP_CONST ||
           v->def->opcode == MC_OP_PACKED;
}

static bool
copy_results(planner *pl, mc_func *f)
{
    mc_builder b = mc_builder_before(f->last, pl->pass->diags);
    for (int i = 0; i < f->last->n_operands; i++) {
        if (!needs_copy(f->last, i)) continue;
        mc_value *copy = mc_build_unary(&b, MC_OP_COPY, mc_operand(f->last, i));
        if (!copy) return false;
        mc_op_set_operand(f->last, i, copy);
    }
    return true;
}

/* ---- places ------------------------------------------------------------------------------------------------------ */

static bool
read_only_as_history(const mc_value *v)
{
    for (const mc_use *u = v->uses; u; u = u->next) {
        int i = (int)(u - u->user->operands);
        bool sdpa = u->user->opcode == MC_OP_SDPA && (i == 1 || i == 2);
        bool top_keys = u->user->opcode == MC_OP_TOP_KEYS && i == 1;
        bool latent = u->user->opcode == MC_OP_LATENT_SDPA && (i == 1 || i == 3);
        if (!sdpa && !top_keys && !latent) return false;
    }
    return true;
}

/* The gradient that v is added to, when its op can add in place and nothing else reads it. The buffer has its place
 * already if it stands before. */
static mc_value *
gradient_of(const mc_value *v)
{
    mc_opcode made_by = v->def->opcode;
    bool adds = made_by == MC_OP_LINEAR_DW || made_by == MC_OP_GROUPED_DW || made_by == MC_OP_EMBED_DW;
    if (!adds || !mc_value_has_one_use(v) || v->uses->user->opcode != MC_OP_ACCUMULATE) return NULL;
    mc_value *buffer = mc_operand_named(v->uses->user, "gradient");
    return buffer && buffer != v && buffer->place.kind == MC_PLACE_WEIGHT ? buffer : NULL;
}

/* Which result of its function v is; -1: none. */
static int
result_index(const mc_value *v)
{
    for (const mc_use *u = v->uses; u; u = u->next)
        if (u->user->opcode == MC_OP_RETURN) return (int)(u - u->user->operands);
    return -1;
}

static void
place_values(mc_func *f)
{
    int32_t n_weights = 0, n_states = 0;
    for (size_t i = 0; i < f->formals.n; i++)
        f->formals.items[i]->place = (mc_place){.kind = MC_PLACE_ARG, .index = (int32_t)i};
    MC_FOR_OPS(op, f)
    {
        bool own_state = mc_op_has(op, MC_TRAIT_STATE) && op->opcode != MC_OP_CALL;
        int32_t state = own_state ? n_states++ : -1;
        for (int i = 0; i < op->n_results; i++) {
            mc_value *v = &op->results[i];
            int result = result_index(v);
            mc_value *gradient = gradient_of(v);
            v->place = (mc_place){.kind = MC_PLACE_SLOT};
            if (op->opcode == MC_OP_PACKED)
                v->place = (mc_place){.kind = MC_PLACE_WEIGHT, .index = n_weights++};
            else if (op->opcode == MC_OP_CONST)
                v->place = (mc_place){.kind = MC_PLACE_CONST};
            else if (op->opcode == MC_OP_RESHAPE || op->opcode == MC_OP_EP_WAIT)
                v->place = (mc_place){.kind = MC_PLACE_VIEW, .base = root(mc_operand(op, 0))};
            else if (gradient)
                v->place = (mc_place){.kind = MC_PLACE_VIEW, .base = gradient};
            else if (op->opcode == MC_OP_CACHE && read_only_as_history(v))
                v->place = (mc_place){.kind = MC_PLACE_STATE, .index = state};
            else if (result >= 0)
                v->place = (mc_place){.kind = MC_PLACE_RESULT, .index = result};
        }
    }
}

/* ---- slots ------------------------------------------------------------------------------------------------------- */

static bool
same_symbols(mc_dim a, mc_dim b)
{
    if (a.n_syms != b.n_syms) return false;
    for (int i = 0; i < a.n_syms; i++)
        if (a.syms[i] != b.syms[i]) return false;
    return true;
}

/* a >= b for every value of their symbols, which are the same and at least 0. */
static bool
covers(mc_dim a, mc_dim b)
{
    return a.mul >= b.mul && a.add >= b.add;
}

static bool
less(mc_dim a, mc_dim b)
{
    return a.mul != b.mul ? a.mul < b.mul : a.add < b.add;
}

static bool
bytes_of(planner *pl, const mc_value *v, mc_dim *out)
{
    const mc_type *t = v->type;
    bool fits = mc_dims_product(t->dims, t->rank, out) &&
                mc_dim_mul(*out, mc_dim_const((int64_t)moec_dtype_bytes(t->dtype)), out);
    return fits || mc_error(pl->pass->diags, v->def->span, MC_E0314,
                            "the size of %s in bytes is not a product of at most %d symbols",
                            mc_type_text(pl->module, t, pl->pass->scratch).data, (int)MC_DIM_SYMS);
}

static void
enlarge(planner *pl, region *r, mc_dim need)
{
    size_t n = 0;
    for (size_t i = 0; i < r->bytes.n; i++) {
        if (covers(r->bytes.items[i], need)) return;
        if (!covers(need, r->bytes.items[i])) r->bytes.items[n++] = r->bytes.items[i];
    }
    r->bytes.n = n;
    mc_vec_push(pl->pass->scratch, &r->bytes, need);
}

/* The smallest free region that covers the need, else the largest free one (to be enlarged), else a new one. */
static size_t
choose(planner *pl, mc_dim need)
{
    size_t best = pl->regions.n;
    bool best_covers = false;
    for (size_t i = 0; i < pl->regions.n; i++) {
        const region *r = &pl->regions.items[i];
        if (r->busy || !same_symbols(r->bytes.items[0], need)) continue;
        bool fits = covers(r->bytes.items[0], need);
        bool better = best == pl->regions.n || fits > best_covers;
        if (!better && fits == best_covers) {
            mc_dim a = r->bytes.items[0], b = pl->regions.items[best].bytes.items[0];
            better = fits ? less(a, b) : less(b, a);
        }
        if (!better) continue;
        best = i;
        best_covers = fits;
    }
    if (best == pl->regions.n) mc_vec_push(pl->pass->scratch, &pl->regions, (region){.busy = false});
    enlarge(pl, &pl->regions.items[best], need);
    return best;
}

static void
release(planner *pl, mc_value *v, int64_t now)
{
    if (v->place.kind == MC_PLACE_SLOT && pl->last_use[v->id] == now) pl->regions.items[v->place.index].busy = false;
}

static bool
assign_slots(planner *pl, mc_func *f)
{
    int64_t now = 0;
    MC_FOR_OPS(op, f)
    {
        now++;
        for (int i = 0; i < op->n_results; i++) pl->last_use[op->results[i].id] = now;
        for (int i = 0; i < op->n_operands; i++)
            if (mc_operand(op, i)) pl->last_use[root(mc_operand(op, i))->id] = now;
    }
    now = 0;
    MC_FOR_OPS(op, f)
    {
        now++;
        for (int i = 0; i < op->n_results; i++) {
            mc_value *v = &op->results[i];
            mc_dim need;
            if (v->place.kind != MC_PLACE_SLOT) continue;
            if (!bytes_of(pl, v, &need)) return false;
            v->place.index = (int32_t)choose(pl, need);
            pl->regions.items[v->place.index].busy = true;
        }
        for (int i = 0; i < op->n_operands; i++)
            if (mc_operand(op, i)) release(pl, root(mc_operand(op, i)), now);
        for (int i = 0; i < op->n_results; i++) release(pl, &op->results[i], now);
    }
    return true;
}

static void
write_slots(planner *pl, mc_func *f)
{
    f->n_slots = pl->regions.n;
    f->slots = MC_NEW_N(pl->module->arena, mc_slot, f->n_slots);
    for (size_t i = 0; i < f->n_slots; i++) {
        const region *r = &pl->regions.items[i];
        f->slots[i].n_bytes = r->bytes.n;
        f->slots[i].bytes = mc_arena_copy(pl->module->arena, r->bytes.items, r->bytes.n * sizeof(mc_dim));
    }
}

/* ---- telling ----------------------------------------------------------------------------------------------------- */

/* Adds the sizes with the same symbols up; a slot of several sizes counts with the greatest of each part. */
static void
tell(planner *pl, const mc_func *f)
{
    MC_VEC(mc_dim) sums = {0};
    for (size_t i = 0; i < f->n_slots; i++) {
        mc_dim size = f->slots[i].bytes[0];
        for (size_t k = 1; k < f->slots[i].n_bytes; k++) {
            mc_dim other = f->slots[i].bytes[k];
            if (other.mul > size.mul) size.mul = other.mul;
            if (other.add > size.add) size.add = other.add;
        }
        size_t k = 0;
        while (k < sums.n && !same_symbols(sums.items[k], size)) k++;
        if (k == sums.n) {
            mc_vec_push(pl->pass->scratch, &sums, size);
        } else if (__builtin_add_overflow(sums.items[k].mul, size.mul, &sums.items[k].mul) ||
                   __builtin_add_overflow(sums.items[k].add, size.add, &sums.items[k].add)) {
            sums.items[k].mul = INT64_MAX;
        }
    }
    mc_buf text = {0};
    for (size_t k = 0; k < sums.n; k++) {
        mc_buf_puts(&text, k ? " + " : ": ");
        mc_dim_print(pl->module, sums.items[k], &text);
    }
    if (sums.n) mc_buf_puts(&text, " bytes");
    mc_remark(pl->pass->diags, f->span, MC_R0504, "@%.*s: %zu slot%s%.*s", MC_FMT(f->name), f->n_slots,
              f->n_slots == 1 ? "" : "s", MC_FMT(mc_buf_view(&text)));
    mc_buf_fini(&text);
}

static bool
is_planned(const mc_func *f)
{
    MC_FOR_OPS(op, f)
    {
        for (int i = 0; i < op->n_results; i++)
            if (op->results[i].place.kind != MC_PLACE_NONE) return true;
    }
    return false;
}

mc_pass_result
mc_pass_plan_memory(mc_pass *p, mc_module *m)
{
    MC_VEC(mc_func *) todo = {0};
    MC_FOR_FUNCS(f, m)
    {
        if (!is_planned(f)) mc_vec_push(p->scratch, &todo, f);
    }
    planner pl = {.pass = p, .module = m};
    for (size_t i = 0; i < todo.n; i++) {
        if (!copy_results(&pl, todo.items[i])) return MC_FAILED;
        place_values(todo.items[i]);
    }
    pl.last_use = MC_NEW_N(p->scratch, int64_t, m->next_id);
    for (size_t i = 0; i < todo.n; i++) {
        pl.regions.n = 0;
        if (!assign_slots(&pl, todo.items[i])) return MC_FAILED;
        write_slots(&pl, todo.items[i]);
        tell(&pl, todo.items[i]);
    }
    return todo.n ? MC_CHANGED : MC_UNCHANGED;
}
