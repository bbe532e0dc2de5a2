/* lower-to-plan: every weight is replaced by the packed form that the target's kernels read.
 *
 *   needs     stage tensor or dist, experts expanded; option nr: columns of a panel; option rows: no panels
 *   keeps     every bit (packing moves elements and widens vectors to f32); leaves stage plan
 *   refuses   gate and up weights that cannot be one pair (E0507); ops that a plan cannot hold (E0405); with rows = 1,
 *             weights that are not f32 (E0509)
 *
 * before:  %w = weight {path = "q.weight", role = "attention"} : bf16[512, 256]
 *          %y = linear %x, %w
 *
 * after:   %w = packed {path = "q.weight", role = "attention", layout = "panels", nr = 16} : bf16[512, 256]
 *          %y = linear %x, %w
 *
 *   read by                                             layout        element type
 *   linear, grouped_matmul, moe.ffn_down (w)            panels        as stored
 *   gated_linear, moe.ffn_up (w_gate and w_up)          pair_panels   as stored; one value for both
 *   embed (table), head_linear (w)                      rows          as stored
 *   everything else                                     rows          f32 (integers stay)
 *
 * A weight that is read in several ways is packed once for each. With rows = 2 (a GPU) what would be panels is rows as
 * stored, and gate and up stay two values. With rows = 1 (training) all are rows in f32: kernels read the parameters
 * where the caller has them. Each accumulate then gets the buffer that it adds to:
 *
 *          %g = packed {path = "q.weight", role = "attention", layout = "grad"} : f32[512, 256]
 *          accumulate %dw, %g {path = "q.weight"}
 */
#include "ir/build.h"
#include "passes/match.h"
#include "passes/pass.h"

#include <string.h>

typedef enum layout { ROWS, ROWS_F32, PANELS, PAIR, N_LAYOUTS } layout;

static const char *const layout_names[N_LAYOUTS] = {"rows", "rows", "panels", "pair_panels"};

typedef enum rows_option { PACKED, TRAINING, AS_STORED } rows_option;

typedef struct lowering {
    mc_pass *pass;
    int64_t nr;
    rows_option rows;
    mc_map packed; /* key of the weights and layout, or of a gradient -> mc_value */
    mc_op *first;  /* of the function as it was: gradients go before it */
} lowering;

/* On a CPU. */
static layout
packing_for(const mc_op *user, int operand)
{
    switch ((int)user->opcode) {
    case MC_OP_LINEAR:
    case MC_OP_GROUPED_MATMUL:
    case MC_OP_MOE_FFN_DOWN: return operand == mc_operand_index(user->opcode, "w") ? PANELS : ROWS_F32;
    case MC_OP_GATED_LINEAR:
    case MC_OP_MOE_FFN_UP:
        return operand == mc_operand_index(user->opcode, "w_gate") || operand == mc_operand_index(user->opcode, "w_up")
                   ? PAIR
                   : ROWS_F32;
    case MC_OP_EMBED: return ROWS;
    case MC_OP_HEAD_LINEAR: return operand == mc_operand_index(user->opcode, "w") ? ROWS : ROWS_F32;
    }
    return ROWS_F32;
}

static layout
layout_for(const lowering *l, const mc_op *user, int operand)
{
    if (l->rows == TRAINING) return ROWS_F32;
    layout how = packing_for(user, operand);
    return l->rows == AS_STORED && (how == PANELS || how == PAIR) ? ROWS : how;
}

/* The stored weight that v is, looking through a cast that a kernel does itself when it widens to f32. */
static mc_op *
stored(const mc_value *v)
{
    const mc_op *cast = mc_def_is(v, MC_OP_CAST);
    if (cast && v->type->dtype == MOEC_F32) {
        mc_op *inner = mc_def_is(mc_operand(cast, 0), MC_OP_WEIGHT);
        if (inner && mc_type_is_float(inner->results[0].type) && inner->results[0].type->dtype != MOEC_F64)
            return inner;
    }
    return mc_def_is(v, MC_OP_WEIGHT);
}

static const mc_type *
packed_type(mc_module *m, const mc_type *t, layout how)
{
    if (how == ROWS_F32) return mc_type_is_float(t) ? mc_type_with_dtype(m, t, MOEC_F32) : t;
    if (how != PAIR) return t;
    mc_dim dims[MC_MAX_RANK];
    memcpy(dims, t->dims, sizeof dims);
    dims[t->rank - 2].mul *= 2;
    return mc_type_get(m, t->dtype, dims, t->rank);
}

/* The packed form of one weight, or of a pair; NULL after an error. */
static mc_value *
pack(lowering *l, mc_op *weight, mc_op *up, layout how)
{
    mc_arena *scratch = l->pass->scratch;
    mc_str key = mc_strf(scratch, "%u,%u,%d", weight->id, up ? up->id : 0, (int)how);
    mc_value *known = mc_map_get(&l->packed, key);
    if (known) return known;
    mc_builder b = mc_builder_before(weight, l->pass->diags);
    mc_named_attr attrs[] = {
        MC_A_STR("path", mc_attr_str(weight, "path")),    MC_A_STR("path2", up ? mc_attr_str(up, "path") : MC_STR("")),
        MC_A_BOOL("root", mc_attr_bool(weight, "root")),  MC_A_STR("role", mc_attr_str(weight, "role")),
        MC_A_STR("layout", mc_str_of(layout_names[how])), MC_A_INT("nr", how == PANELS || how == PAIR ? l->nr : 0),
        MC_A_STR("init", mc_attr_str(weight, "init")),    MC_A_INT("of", mc_attr_int(weight, "of"))};
    const mc_type *type = packed_type(weight->func->module, weight->results[0].type, how);
    mc_op *op = mc_build_typed(&b, MC_OP_PACKED, NULL, 0, attrs, sizeof attrs / sizeof attrs[0], &type, 1);
    if (!op) return NULL;
    op->results[0].name = weight->results[0].name;
    mc_map_set(&l->packed, key, &op->results[0]);
    return &op->results[0];
}

static bool
lower_pair(lowering *l, mc_op *op)
{
    int at_gate = mc_operand_index(op->opcode, "w_gate"), at_up = mc_operand_index(op->opcode, "w_up");
    mc_op *gate = stored(mc_operand(op, at_gate)), *up = stored(mc_operand(op, at_up));
    bool same = gate && up && gate->results[0].type == up->results[0].type &&
                mc_attr_bool(gate, "root") == mc_attr_bool(up, "root");
    if (!same)
        return mc_error(l->pass->diags, op->span, MC_E0507,
                        "the gate and up weights of '%s' must be stored weights of one shape, element type and scope",
                        mc_op_info_of(op)->text);
    mc_value *packed = pack(l, gate, up, PAIR);
    if (!packed) return false;
    mc_op_set_operand(op, at_gate, packed);
    mc_op_set_operand(op, at_up, packed);
    return true;
}

/* An op whose result takes its element type from this weight must still see that type: a vector packed in f32 is
 * narrowed again for it. */
static mc_value *
narrowed(lowering *l, mc_op *op, int operand, mc_value *packed)
{
    moec_dtype was = mc_operand(op, operand)->type->dtype;
    bool widened = packed->type->dtype == MOEC_F32 && was != MOEC_F32;
    bool says = mc_attr_index(op->opcode, MC_STR("to")) >= 0 && mc_attr_dtype(op, "to") != MOEC_DTYPE_NONE;
    bool follows = op->opcode == MC_OP_RETURN || (!says && op->n_results > 0 && op->results[0].type->dtype == was);
    if (!widened || !follows) return packed;
    mc_builder b = mc_builder_before(op, l->pass->diags);
    mc_named_attr to = MC_A_DTYPE("to", was);
    return mc_build1(&b, MC_OP_CAST, &packed, 1, &to, 1);
}

/* ---- training ---------------------------------------------------------------------------------------------------- */

/* What a parameter is for is said by the weight of this path, which may stand in another function only: a gradient is
 * often made without reading the weight. Paths in functions that do not belong together may be equal, so the nearest
 * function before this one wins. */
static const mc_op *
parameter_of(const mc_op *accumulate)
{
    const mc_op *found = NULL;
    mc_str path = mc_attr_str(accumulate, "path");
    bool root = mc_attr_bool(accumulate, "root");
    MC_FOR_FUNCS(f, accumulate->func->module)
    {
        MC_FOR_OPS(op, f)
        {
            bool stored_here = op->opcode == MC_OP_WEIGHT || op->opcode == MC_OP_PACKED;
            if (stored_here && mc_attr_bool(op, "root") == root && mc_str_eq(mc_attr_str(op, "path"), path)) found = op;
        }
        if (f == accumulate->func) break;
    }
    return found;
}

/* Stands at the head of its function, before whatever might write into it. */
static mc_value *
gradient(lowering *l, const mc_op *accumulate)
{
    mc_str path = mc_attr_str(accumulate, "path");
    bool root = mc_attr_bool(accumulate, "root");
    mc_str key = mc_strf(l->pass->scratch, "grad,%d,%.*s", (int)root, MC_FMT(path));
    mc_value *known = mc_map_get(&l->packed, key);
    if (known && known->type != mc_operand(accumulate, 0)->type) {
        mc_error(l->pass->diags, accumulate->span, MC_E0310,
                 "the gradient of '%.*s' has another shape here than before", MC_FMT(path));
        return NULL;
    }
    if (known) return known;
    mc_builder b = mc_builder_before(l->first, l->pass->diags);
    b.span = accumulate->span;
    const mc_op *parameter = parameter_of(accumulate);
    mc_named_attr attrs[] = {MC_A_STR("path", path), MC_A_BOOL("root", root),
                             MC_A_STR("role", parameter ? mc_attr_str(parameter, "role") : MC_STR("dense")),
                             MC_A_STR("layout", MC_STR("grad")),
                             MC_A_INT("of", parameter ? mc_attr_int(parameter, "of") : 0)};
    const mc_type *type = mc_operand(accumulate, 0)->type;
    mc_op *op = mc_build_typed(&b, MC_OP_PACKED, NULL, 0, attrs, sizeof attrs / sizeof attrs[0], &type, 1);
    if (!op) return NULL;
    op->results[0].name = MC_STR("grad");
    mc_map_set(&l->packed, key, &op->results[0]);
    return &op->results[0];
}

static bool
check_f32(lowering *l, const mc_op *weight)
{
    const mc_type *t = weight->results[0].type;
    return !mc_type_is_float(t) || t->dtype == MOEC_F32 ||
           mc_error(l->pass->diags, weight->span, MC_E0509,
                    "the parameter '%.*s' is stored in %s, and training works on f32: say 'precision { storage f32 }', "
                    "or --set precision.storage=f32",
                    MC_FMT(mc_attr_str(weight, "path")), moec_dtype_name(t->dtype));
}

/* ---- ops ------------------------------------------------------------------------------------------------------- */

static bool
check_stage(lowering *l, const mc_op *op)
{
    if (mc_op_info_of(op)->stages & MC_IN_PLAN) return true;
    return mc_error(l->pass->diags, op->span, MC_E0405, "a plan cannot hold '%s': run '%s' first",
                    mc_op_info_of(op)->text, op->opcode == MC_OP_OUTPUT ? "autodiff" : "expand-moe");
}

static bool
lower_op(lowering *l, mc_op *op)
{
    if (!check_stage(l, op)) return false;
    bool pair = op->opcode == MC_OP_GATED_LINEAR || op->opcode == MC_OP_MOE_FFN_UP;
    if (pair && l->rows == PACKED && !lower_pair(l, op)) return false;
    if (op->opcode == MC_OP_ACCUMULATE && !mc_operand_named(op, "gradient")) {
        mc_value *buffer = gradient(l, op);
        if (!buffer) return false;
        mc_op_set_operand(op, mc_operand_index(MC_OP_ACCUMULATE, "gradient"), buffer);
    }
    for (int i = 0; i < op->n_operands; i++) {
        mc_op *weight = mc_operand(op, i) ? stored(mc_operand(op, i)) : NULL;
        if (!weight) continue;
        if (l->rows == TRAINING && !check_f32(l, weight)) return false;
        mc_value *packed = pack(l, weight, NULL, layout_for(l, op, i));
        if (packed) packed = narrowed(l, op, i, packed);
        if (!packed) return false;
        mc_op_set_operand(op, i, packed);
    }
    return true;
}

/* Casts that only fed what reads packed weights now, and the weights themselves. */
static void
sweep(mc_func *f)
{
    mc_op *prev;
    for (mc_op *op = f->last; op; op = prev) {
        prev = op->prev;
        bool gone =
            op->opcode == MC_OP_WEIGHT || (op->opcode == MC_OP_CAST && mc_def_is(mc_operand(op, 0), MC_OP_WEIGHT));
        if (gone && !mc_value_has_uses(&op->results[0])) mc_op_remove(op);
    }
}

static mc_pass_result
run(mc_pass *p, mc_func *f)
{
    lowering l = {
        .pass = p, .nr = mc_pass_option(p, "nr"), .rows = (rows_option)mc_pass_option(p, "rows"), .first = f->first};
    mc_map_init(&l.packed, p->scratch);
    MC_FOR_OPS(op, f)
    {
        bool cast_of_weight = op->opcode == MC_OP_CAST && stored(&op->results[0]);
        if (op->opcode != MC_OP_WEIGHT && !cast_of_weight && !lower_op(&l, op)) return MC_FAILED;
    }
    sweep(f);
    return MC_CHANGED;
}

mc_pass_result
mc_pass_lower_to_plan(mc_pass *p, mc_module *m)
{
    return mc_pass_over_funcs(p, m, run) == MC_FAILED ? MC_FAILED : MC_CHANGED;
}
