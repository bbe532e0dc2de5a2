/* Finds runs of row-wise routing ops and makes one launch of each. A run begins at p->op and goes on with later ops
 * that hang together with it, as long as everything else they read was there before it; so the launch stands where the
 * run begins. Legal because the ops are pure and each warp has a row to itself. The one idea: results that leave the
 * run are written earlier than plan-memory thought, so where their slot may still be in use they get another one. */
#include "codegen/gpu/route_chain.h"

#include "codegen/gpu/select.h"
#include "runtime/base/hash.h"

enum { WINDOW = 64, CHAIN_WIDTH = 1024, ALONE_WIDTH = 8192, WARPS = 4 };

static bool
is_routing(const mc_op *op)
{
    switch ((int)op->opcode) {
    case MC_OP_ROUTE_GROUPS:
    case MC_OP_ROUTE_TOP:
    case MC_OP_ROUTE_RENORM:
    case MC_OP_ROUTE_TAKE:
    case MC_OP_ROUTE_SPARSEMIXER:
    case MC_OP_ROUTE_RENORM_GRAD:
    case MC_OP_ROUTE_SCATTER:
    case MC_OP_ROUTE_MASK: return true;
    }
    return false;
}

/* ---- what leaves the chain -------------------------------------------------------------------------------------- */

static bool
is_member(const mc_route_chain *c, const mc_op *op)
{
    for (size_t i = 0; i < c->ops.n; i++)
        if (c->ops.items[i] == op) return true;
    return false;
}

/* Whether an op outside reads v, or a reshape of it. */
static bool
leaves(const mc_route_chain *c, const mc_value *v)
{
    for (const mc_use *u = v->uses; u; u = u->next) {
        if (!is_member(c, u->user)) return true;
        if (u->user->opcode == MC_OP_RESHAPE && leaves(c, mc_result(u->user, 0))) return true;
    }
    return false;
}

static bool
lies_in(const mc_value *v, int32_t slot)
{
    while (v && v->place.kind == MC_PLACE_VIEW) v = v->place.base;
    return v && v->place.kind == MC_PLACE_SLOT && v->place.index == slot;
}

/* Whether something else lies in v's slot between the beginning of the chain and the op that makes v. */
static bool
is_crowded(const mc_route_chain *c, const mc_value *v)
{
    int32_t slot = v->place.index;
    for (const mc_op *op = c->ops.items[0];; op = op->next) {
        for (int i = 0; i < op->n_operands; i++)
            if (lies_in(mc_operand(op, i), slot)) return true;
        for (int i = 0; i < op->n_results; i++) {
            const mc_value *y = mc_result(op, i);
            bool written = !is_member(c, op) || (op->opcode != MC_OP_RESHAPE && leaves(c, y));
            if (y != v && written && lies_in(y, slot)) return true;
        }
        if (op == v->def) return false;
    }
}

static void
move_crowded(mc_route_chain *c, const mc_value *v)
{
    if (v->place.kind != MC_PLACE_SLOT || !is_crowded(c, v)) return;
    mc_dim bytes =
        mc_plan_times(c->p, mc_plan_count(c->p, v->type), mc_dim_const((int64_t)moec_dtype_bytes(v->type->dtype)));
    mc_plan_move(c->p, v, mc_plan_slot(c->p, bytes));
}

/* ---- the launch -------------------------------------------------------------------------------------------------- */

/* The statements of all members; c->ptrs becomes what they read and write. */
static void
write_text(mc_route_chain *c)
{
    mc_buf_clear(&c->head);
    mc_buf_clear(&c->body);
    c->ptrs.n = c->loads.n = 0;
    for (size_t i = 0; i < c->ops.n; i++) mc_route_say(c, c->ops.items[i]);
    for (size_t i = 0; i < c->ops.n; i++) {
        const mc_op *op = c->ops.items[i];
        for (int j = 0; j < op->n_results && op->opcode != MC_OP_RESHAPE; j++)
            if (leaves(c, mc_result(op, j))) mc_route_store(c, mc_result(op, j));
    }
}

static void
launch(mc_route_chain *c)
{
    mc_plan *p = c->p;
    for (size_t i = 0; i < c->ops.n; i++) {
        const mc_op *op = c->ops.items[i];
        for (int j = 0; j < op->n_results && op->opcode != MC_OP_RESHAPE; j++)
            if (leaves(c, mc_result(op, j))) move_crowded(c, mc_result(op, j));
    }
    mc_str head = mc_buf_view(&c->head), body = mc_buf_view(&c->body);
    mc_gpu_code code = {.file = "row.cuh", .threads = 32 * WARPS};
    code.call =
        mc_strf(p->arena, "i64 t = warp_row();\n    if (t >= a.i[0]) return;\n%.*s%.*s", MC_FMT(head), MC_FMT(body));
    code.spills_allowed = c->max_width > CHAIN_WIDTH;
    mc_gpu_grid(&code, 0, 0, WARPS);
    unsigned long long key = mc_hash64(code.call.data, code.call.len, 0);
    mc_plan_launch(p, mc_gpu_kernel_get(p, &code, "route_%016llx", key));
    for (size_t i = 0; i < c->ptrs.n; i++) mc_gpu_value(p, c->ptrs.items[i]);
    mc_gpu_int(p, c->rows);
}

static mc_route_chain
begin(mc_plan *p, const mc_op *op, int64_t max_width)
{
    mc_route_chain c = {.p = p, .max_width = max_width};
    const mc_type *t = op->n_results ? op->results[0].type : NULL;
    if (!t || t->rank < 1 || !mc_type_rows(t, &c.rows)) c.max_width = 0;
    return c;
}

static void
end(mc_route_chain *c)
{
    mc_buf_fini(&c->head);
    mc_buf_fini(&c->body);
}

/* ---- finding ----------------------------------------------------------------------------------------------------- */

static bool
reads_from(const mc_route_chain *c, const mc_op *op, const mc_op *from)
{
    for (int i = 0; i < op->n_operands; i++) {
        const mc_value *v = mc_operand(op, i), *made = v ? mc_route_made(c, v) : NULL;
        if (v && (v->def == from || (made && made->def == from))) return true;
    }
    return false;
}

/* Keeps the ops that hang together with the first, by values between them. */
static void
keep_linked(mc_route_chain *c)
{
    bool linked[WINDOW] = {true}, again = true;
    while (again) {
        again = false;
        for (size_t i = 0; i < c->ops.n; i++)
            for (size_t j = 0; j < i; j++) {
                if (linked[i] == linked[j] || !reads_from(c, c->ops.items[i], c->ops.items[j])) continue;
                linked[i] = linked[j] = again = true;
            }
    }
    size_t n = 0;
    for (size_t i = 0; i < c->ops.n; i++)
        if (linked[i]) c->ops.items[n++] = c->ops.items[i];
    c->ops.n = n;
}

/* All that could stand here with `first`. */
static void
grow(mc_route_chain *c, const mc_op *first)
{
    int left = WINDOW;
    for (const mc_op *op = first; op && left--; op = op->next) {
        if (mc_route_joins(c, op))
            mc_vec_push(c->p->arena, &c->ops, op);
        else if (op == first)
            return;
    }
}

static bool
routes(const mc_route_chain *c)
{
    for (size_t i = 0; i < c->ops.n; i++)
        if (is_routing(c->ops.items[i])) return true;
    return false;
}

/* Shortens the chain until its kernel has few enough arguments. */
static void
settle(mc_route_chain *c)
{
    do {
        write_text(c);
        if (c->ptrs.n > MOEC_ABI_MAX_PTRS) c->ops.n--;
    } while (c->ops.n && c->ptrs.n > MOEC_ABI_MAX_PTRS);
}

bool
mc_gpu_fuse_routes(mc_plan *p, const mc_op *op)
{
    for (size_t i = 0; i < p->done.n; i++)
        if (p->done.items[i] == op) return true;
    mc_route_chain c = begin(p, op, CHAIN_WIDTH);
    grow(&c, op);
    if (routes(&c)) keep_linked(&c);
    if (routes(&c)) settle(&c);
    bool found = routes(&c);
    if (found) {
        launch(&c);
        for (size_t i = 0; i < c.ops.n; i++) mc_vec_push(p->arena, &p->done, c.ops.items[i]);
    }
    end(&c);
    return found;
}

void
mc_gpu_route_alone(mc_plan *p, const mc_op *op)
{
    mc_route_chain c = begin(p, op, ALONE_WIDTH);
    if (mc_route_joins(&c, op)) {
        mc_vec_push(p->arena, &c.ops, op);
        write_text(&c);
        launch(&c);
    } else {
        mc_plan_refuse(p, "its values must be rows of at most %d f32, bf16 or f16, its ids i32", (int)ALONE_WIDTH);
    }
    end(&c);
}
