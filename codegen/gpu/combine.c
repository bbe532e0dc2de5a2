/* Combining: see combine.h. Which rows a token has is the inverse of what moe.dispatch did. The one idea: dispatch
 * writes the inverse as it sorts, into a slot that belongs to its result; only where the rows come from elsewhere (a
 * backward function gets them as arguments) two short launches make it. */
#include "codegen/gpu/combine.h"

#include "codegen/gpu/rows.h"

enum { THREADS = 128, FLAT = 256, FEW = 32 }; /* COMBINE_THREADS of combine.cuh */

mc_dim
mc_gpu_plus(mc_dim d, int64_t n)
{
    if (mc_dim_is_const(d)) return mc_dim_const(d.mul + n);
    d.add += n;
    return d;
}

static bool
combines(const mc_value *v)
{
    for (const mc_use *u = v->uses; u; u = u->next) {
        mc_opcode code = u->user->opcode;
        if (code == MC_OP_MOE_UNPERMUTE && mc_operand(u->user, 2) == v) return true;
        if (code == MC_OP_MOE_FFN_DOWN && mc_operand(u->user, 3) == v) return true;
    }
    return false;
}

bool
mc_gpu_combine_keep(mc_plan *p, const mc_op *dispatch, uint32_t *slot)
{
    const mc_value *tokens = mc_result(dispatch, 1), *slots = mc_result(dispatch, 2);
    if (!combines(tokens) && !combines(slots)) return false;
    *slot = mc_plan_slot(p, mc_plan_times(p, tokens->type->dims[0], mc_dim_const(4)));
    mc_vec_push(p->arena, &p->beside, ((mc_plan_home){tokens, *slot}));
    mc_vec_push(p->arena, &p->beside, ((mc_plan_home){slots, *slot}));
    return true;
}

static bool
find_list(const mc_plan *p, const mc_value *rows, uint32_t *slot)
{
    for (size_t i = 0; i < p->beside.n; i++) {
        if (p->beside.items[i].value != rows) continue;
        *slot = p->beside.items[i].slot;
        return true;
    }
    return false;
}

/* The list in scratch memory, `bytes` after its beginning. */
static void
make_list(mc_plan *p, const mc_gpu_combine *c, mc_dim tokens, mc_dim assignments, int64_t most, mc_dim bytes)
{
    mc_dim per_token = mc_plan_times(p, tokens, mc_dim_const(most + 1)); /* the list, then counts */
    mc_gpu_code clear = {.file = "combine.cuh", .threads = FLAT, .call = MC_STR("combine_clear(a);")};
    mc_gpu_grid(&clear, 0, 2, FLAT);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &clear));
    mc_gpu_int(p, tokens);
    mc_gpu_int(p, assignments);
    mc_gpu_int(p, per_token);
    mc_gpu_int(p, bytes);

    mc_gpu_code list = {.file = "combine.cuh", .threads = FLAT};
    list.call = mc_strf(p->arena, "combine_list<%lld>(a);", (long long)most);
    mc_gpu_grid(&list, 0, 1, FLAT);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &list));
    mc_gpu_value(p, c->rows);
    mc_gpu_value(p, c->offsets);
    mc_gpu_int(p, tokens);
    mc_gpu_int(p, assignments);
    mc_plan_const(p, mc_plan_need_const(p, c->offsets->type->dims[0], "the number of experts") - 1);
    mc_gpu_int(p, bytes);
}

/* How many rows a token has at most. */
static int64_t
rows_per_token(mc_plan *p, mc_dim tokens, mc_dim assignments)
{
    mc_dim most;
    if (mc_dim_div(assignments, tokens, &most) && mc_dim_is_const(most) && most.mul >= 1) return most.mul;
    mc_plan_refuse(p, "its rows are not a constant number for each token");
    return 1;
}

/* The kernel that adds: by blocks, or element by element where rows are short. */
static mc_gpu_code
combining(mc_plan *p, const mc_gpu_combine *c, moec_dtype from, moec_dtype to, int64_t most)
{
    mc_gpu_code code = {.file = "combine.cuh", .threads = THREADS};
    const char *y = mc_gpu_type(from), *x = mc_gpu_type(to), *gated = c->gates ? "true" : "false";
    size_t from_bytes = moec_dtype_bytes(from), to_bytes = moec_dtype_bytes(to);
    mc_dim d = mc_type_last(c->x->type);
    if (mc_dim_is_const(d) && d.mul < FEW) {
        code.call = mc_strf(p->arena, "combine_few<%s, %s, %lld, %s>(a);", y, x, (long long)most, gated);
        mc_gpu_grid(&code, 0, 3, THREADS);
        return code;
    }
    uint32_t width = mc_gpu_width(d, from_bytes < to_bytes ? from_bytes : to_bytes);
    code.call = mc_strf(p->arena, "combine<%s, %s, %lld, %u, %s>(a);", y, x, (long long)most, width, gated);
    mc_gpu_grid(&code, 0, 0, 1);
    mc_gpu_grid(&code, 1, 1, THREADS * width);
    return code;
}

void
mc_gpu_combine_rows(mc_plan *p, const mc_gpu_combine *c)
{
    mc_dim tokens = mc_plan_rows(p, c->x->type), d = mc_type_last(c->x->type), assignments = c->rows->type->dims[0];
    moec_dtype from = c->y ? c->y->type->dtype : c->y_dtype, to = c->x->type->dtype;
    if (!mc_gpu_is_float(from) || !mc_gpu_is_float(to)) {
        mc_plan_refuse(p, "rows of experts are f32, bf16 or f16");
        return;
    }
    int64_t most = rows_per_token(p, tokens, assignments);
    int64_t row = c->y ? 0 : mc_plan_need_const(p, d, "the width of a row") * (int64_t)moec_dtype_bytes(from);
    int64_t rows = (row + 15) / 16 * 16 * most; /* of a token, so that the list after all of them is aligned */
    mc_dim bytes = mc_plan_times(p, tokens, mc_dim_const(rows));
    uint32_t slot = 0;
    bool kept = find_list(p, c->rows, &slot);
    mc_plan_scratch_dim(p, mc_plan_times(p, tokens, mc_dim_const(rows + (kept ? 0 : (most + 1) * 4))));
    if (!kept) make_list(p, c, tokens, assignments, most, bytes);
    mc_gpu_code code = combining(p, c, from, to, most);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, c->y);
    mc_gpu_value(p, c->gates);
    if (kept)
        mc_plan_ptr_slot(p, slot);
    else
        mc_gpu_value(p, NULL);
    mc_gpu_value(p, c->x);
    mc_gpu_int(p, tokens);
    mc_gpu_int(p, d);
    mc_gpu_int(p, bytes);
    mc_gpu_int(p, mc_plan_count(p, c->x->type));
}

void
mc_gpu_select_unpermute(mc_plan *p, const mc_op *op)
{
    mc_gpu_combine c = {.y = mc_operand(op, 0),
                        .offsets = mc_operand(op, 1),
                        .rows = mc_operand(op, 2),
                        .gates = mc_operand(op, 3),
                        .x = mc_result(op, 0)};
    if (c.rows->type->dtype != MOEC_I32 || (c.gates && c.gates->type->dtype != MOEC_F32))
        mc_plan_refuse(p, "its rows must be i32 and its gates f32");
    else
        mc_gpu_combine_rows(p, &c);
}
