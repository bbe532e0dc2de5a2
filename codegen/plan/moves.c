/* Walks: axes that stay neighbours on both sides are joined as they are added, so a walk has as few as it can. */
#include "codegen/plan/moves.h"

bool
mc_walk_is_one(mc_dim d)
{
    return mc_dim_eq(d, mc_dim_const(1));
}

/* outer step == inner size * inner step */
static bool
follows(mc_dim outer_step, mc_dim size, mc_dim inner_step)
{
    mc_dim run;
    return mc_dim_mul(size, inner_step, &run) && mc_dim_eq(run, outer_step);
}

/* Adds an axis inside those added before, merging it with its neighbour when both sides go on without a gap. */
static void
add_axis(mc_plan_walk *w, mc_dim size, mc_dim from, mc_dim to)
{
    if (mc_walk_is_one(size)) return;
    int last = w->n - 1;
    mc_dim joined;
    if (w->n && follows(w->from[last], size, from) && follows(w->to[last], size, to) &&
        mc_dim_mul(w->size[last], size, &joined)) {
        w->size[last] = joined;
        w->from[last] = from;
        w->to[last] = to;
        return;
    }
    w->size[w->n] = size;
    w->from[w->n] = from;
    w->to[w->n++] = to;
}

static void
launch_walk(mc_plan *p, mc_plan_walk *w, mc_plan_walk_fn *launch)
{
    if (!w->n) {
        w->size[0] = w->from[0] = w->to[0] = mc_dim_const(1);
        w->n = 1;
    }
    launch(p, w);
}

static mc_plan_walk
walk_of(const mc_value *x, mc_dim x_offset, const mc_value *y, mc_dim y_offset)
{
    return (mc_plan_walk){.x = x, .y = y, .x_offset = x_offset, .y_offset = y_offset};
}

int
mc_walk_axis(const mc_op *op, int rank)
{
    int64_t axis = mc_attr_int(op, "axis");
    return (int)(axis < 0 ? axis + rank : axis);
}

static void
walk_split(mc_plan *p, const mc_op *op, mc_plan_walk_fn *launch)
{
    const mc_value *x = mc_operand(op, 0);
    mc_dim one = mc_dim_const(1), zero = mc_dim_const(0);
    int64_t offset = 0;
    for (int i = 0; i < op->n_results; i++) {
        const mc_value *part = mc_result(op, i);
        mc_dim width = mc_type_last(part->type);
        mc_plan_walk w = walk_of(x, mc_dim_const(offset), part, zero);
        add_axis(&w, mc_plan_rows(p, x->type), mc_type_last(x->type), width);
        add_axis(&w, width, one, one);
        launch_walk(p, &w, launch);
        offset += mc_plan_need_const(p, width, "a part of a split");
    }
}

static void
walk_concat(mc_plan *p, const mc_op *op, mc_plan_walk_fn *launch)
{
    const mc_value *y = mc_result(op, 0);
    int axis = mc_walk_axis(op, y->type->rank);
    mc_dim one = mc_dim_const(1), zero = mc_dim_const(0);
    mc_dim inner = mc_plan_product(p, y->type, axis + 1, y->type->rank);
    mc_dim run = mc_plan_times(p, y->type->dims[axis], inner);
    int64_t done = 0;
    for (int i = 0; i < op->n_operands; i++) {
        const mc_value *x = mc_operand(op, i);
        mc_dim part = mc_plan_times(p, x->type->dims[axis], inner);
        mc_plan_walk w = walk_of(x, zero, y, mc_plan_times(p, mc_dim_const(done), inner));
        add_axis(&w, mc_plan_product(p, x->type, 0, axis), part, run);
        add_axis(&w, part, one, one);
        launch_walk(p, &w, launch);
        if (i + 1 < op->n_operands) done += mc_plan_need_const(p, x->type->dims[axis], "a joined axis");
    }
}

static void
walk_transpose(mc_plan *p, const mc_op *op, mc_plan_walk_fn *launch)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    const mc_attr *perm = mc_attr_get(op, "perm");
    mc_plan_walk w = walk_of(x, mc_dim_const(0), y, mc_dim_const(0));
    for (int a = 0; a < y->type->rank; a++) {
        int source = (int)perm->as.ints.items[a];
        add_axis(&w, y->type->dims[a], mc_plan_product(p, x->type, source + 1, x->type->rank),
                 mc_plan_product(p, y->type, a + 1, y->type->rank));
    }
    launch_walk(p, &w, launch);
}

/* slice, expand, tile: outer x (what happens on the axis) x inner. */
static void
walk_along_axis(mc_plan *p, const mc_op *op, mc_plan_walk_fn *launch)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    int axis = mc_walk_axis(op, x->type->rank);
    mc_dim zero = mc_dim_const(0), one = mc_dim_const(1), inner = mc_plan_product(p, x->type, axis + 1, x->type->rank);
    mc_dim outer = mc_plan_product(p, x->type, 0, axis);
    mc_dim from = mc_plan_times(p, x->type->dims[axis], inner), to = mc_plan_times(p, y->type->dims[axis], inner);
    mc_plan_walk w = walk_of(x, zero, y, zero);
    add_axis(&w, outer, from, to);
    if (op->opcode == MC_OP_SLICE) {
        w.x_offset = mc_plan_times(p, mc_dim_const(mc_attr_int(op, "begin")), inner);
        add_axis(&w, to, one, one);
    } else {
        add_axis(&w, mc_dim_const(mc_attr_int(op, "n")), zero, from);
        add_axis(&w, from, one, one);
    }
    launch_walk(p, &w, launch);
}

static void
walk_copy(mc_plan *p, const mc_op *op, mc_plan_walk_fn *launch)
{
    const mc_value *x = mc_operand(op, 0);
    mc_dim one = mc_dim_const(1);
    mc_plan_walk w = walk_of(x, mc_dim_const(0), mc_result(op, 0), mc_dim_const(0));
    add_axis(&w, mc_plan_count(p, x->type), one, one);
    launch_walk(p, &w, launch);
}

void
mc_plan_moves(mc_plan *p, const mc_op *op, mc_plan_walk_fn *launch)
{
    switch (op->opcode) {
    case MC_OP_SPLIT: walk_split(p, op, launch); break;
    case MC_OP_CONCAT: walk_concat(p, op, launch); break;
    case MC_OP_TRANSPOSE: walk_transpose(p, op, launch); break;
    case MC_OP_COPY: walk_copy(p, op, launch); break;
    default: walk_along_axis(p, op, launch); break;
    }
}
