/* Everything that only moves elements: copy, split, concat, slice, expand, tile, transpose, unslice
 * (kernels/move.cuh), as the walks of codegen/plan/moves.h. The one idea:
 * neighbours that stay together move in units of up to 16 bytes; where they do not, tiles are turned in shared memory.
 */
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"
#include "codegen/plan/moves.h"

enum { MAX_UNIT = 16, TILE = 1024, TILE_THREADS = 256 };

static void
remove_axis(mc_plan_walk *w, int axis)
{
    w->n--;
    for (int a = axis; a < w->n; a++) {
        w->size[a] = w->size[a + 1];
        w->from[a] = w->from[a + 1];
        w->to[a] = w->to[a + 1];
    }
}

/* ---- launches --------------------------------------------------------------------------------------------------- */

static const char *
unit_type(int64_t bytes)
{
    return bytes == 16 ? "u128" : bytes == 8 ? "u64" : bytes == 4 ? "u32" : bytes == 2 ? "u16" : "u8";
}

static bool
divides(int64_t n, mc_dim d)
{
    return d.mul % n == 0 && d.add % n == 0;
}

/* How many elements may move as one: the innermost axis is made of such runs on both sides. */
static int64_t
elements_of_unit(const mc_plan_walk *w, int64_t bytes)
{
    int last = w->n - 1;
    int64_t n =
        mc_walk_is_one(w->from[last]) && mc_walk_is_one(w->to[last]) && bytes <= MAX_UNIT ? MAX_UNIT / bytes : 1;
    for (;; n /= 2) {
        bool fits = divides(n, w->size[last]) && divides(n, w->x_offset) && divides(n, w->y_offset);
        for (int a = 0; a < last && fits; a++) fits = divides(n, w->from[a]) && divides(n, w->to[a]);
        if (fits) return n;
    }
}

static mc_dim
less(mc_dim d, int64_t n)
{
    d.mul /= n;
    d.add /= n;
    return d;
}

static mc_dim
count_of(mc_plan *p, const mc_plan_walk *w)
{
    mc_dim n = mc_dim_const(1);
    for (int a = 0; a < w->n; a++) n = mc_plan_times(p, n, w->size[a]);
    return n;
}

static void
push_values(mc_plan *p, const mc_plan_walk *w, int64_t bytes)
{
    if (mc_gpu_grows(p, w->x_offset) || mc_gpu_grows(p, w->y_offset))
        mc_plan_refuse(p, "where a part begins changes with every cached position");
    mc_plan_ptr_at(p, w->x, mc_plan_times(p, w->x_offset, mc_dim_const(bytes)));
    mc_plan_ptr_at(p, w->y, mc_plan_times(p, w->y_offset, mc_dim_const(bytes)));
}

static void
add_axes(mc_plan *p, const mc_plan_walk *w, mc_gpu_sizes *sizes)
{
    for (int a = 0; a < w->n; a++) mc_gpu_sizes_add(p, sizes, w->size[a]);
    for (int a = 0; a < w->n; a++) mc_gpu_sizes_add(p, sizes, w->from[a]);
    for (int a = 0; a < w->n; a++) mc_gpu_sizes_add(p, sizes, w->to[a]);
}

static void
launch(mc_plan *p, const mc_plan_walk *w, int64_t bytes, mc_gpu_code *code, const mc_gpu_sizes *sizes)
{
    mc_gpu_sizes_call(p, sizes, code);
    mc_plan_launch(p, mc_gpu_kernel_of(p, code));
    push_values(p, w, bytes);
    mc_gpu_sizes_push(p, sizes);
}

static void
launch_move(mc_plan *p, mc_plan_walk *w, int64_t bytes)
{
    int last = w->n - 1;
    int64_t n = elements_of_unit(w, bytes);
    mc_gpu_code code = {.file = "move.cuh", .threads = MC_GPU_FLAT_THREADS};
    code.call = mc_strf(p->arena, "move<%s, %d>(a);", unit_type(n * bytes), w->n);
    mc_gpu_grid(&code, 0, 0, MC_GPU_FLAT_THREADS);
    w->size[last] = less(w->size[last], n);
    for (int a = 0; a < last; a++) {
        w->from[a] = less(w->from[a], n);
        w->to[a] = less(w->to[a], n);
    }
    mc_gpu_sizes sizes = {0};
    mc_gpu_sizes_add(p, &sizes, count_of(p, w));
    add_axes(p, w, &sizes);
    launch(p, w, bytes, &code, &sizes);
}

/* at_x and at_y: the axes whose neighbours lie together in x and in y. */
static void
launch_turn(mc_plan *p, mc_plan_walk *w, int64_t bytes, int at_x, int at_y)
{
    mc_gpu_sizes sizes = {0};
    mc_gpu_sizes_add(p, &sizes, count_of(p, w));
    mc_gpu_sizes_add(p, &sizes, w->size[at_x]);
    mc_gpu_sizes_add(p, &sizes, w->to[at_x]);
    mc_gpu_sizes_add(p, &sizes, w->size[at_y]);
    mc_gpu_sizes_add(p, &sizes, w->from[at_y]);
    remove_axis(w, at_x > at_y ? at_x : at_y);
    remove_axis(w, at_x > at_y ? at_y : at_x);
    mc_gpu_code code = {.file = "move.cuh", .threads = TILE_THREADS};
    code.call = mc_strf(p->arena, "turn<%s, %d>(a);", unit_type(bytes), w->n);
    mc_gpu_grid(&code, 0, 0, TILE);
    add_axes(p, w, &sizes);
    launch(p, w, bytes, &code, &sizes);
}

static void
launch_walk(mc_plan *p, mc_plan_walk *w)
{
    int64_t bytes = (int64_t)moec_dtype_bytes(w->x->type->dtype);
    int at_x = -1, at_y = -1;
    for (int a = 0; a < w->n; a++) {
        if (mc_walk_is_one(w->from[a])) at_x = a;
        if (mc_walk_is_one(w->to[a])) at_y = a;
    }
    if (at_x >= 0 && at_y >= 0 && at_x != at_y) {
        launch_turn(p, w, bytes, at_x, at_y);
    } else {
        launch_move(p, w, bytes);
    }
}

void
mc_gpu_select_move(mc_plan *p, const mc_op *op)
{
    double value;
    if (op->opcode == MC_OP_COPY && mc_plan_is_const(mc_operand(op, 0), &value))
        mc_gpu_select_elementwise(p, op);
    else
        mc_plan_moves(p, op, launch_walk);
}

/* ---- unslice ---------------------------------------------------------------------------------------------------- */

void
mc_gpu_select_unslice(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    int axis = mc_walk_axis(op, x->type->rank);
    int64_t bytes = (int64_t)moec_dtype_bytes(x->type->dtype), n = MAX_UNIT / bytes;
    mc_dim inner = mc_plan_product(p, x->type, axis + 1, x->type->rank);
    mc_dim row_y = mc_plan_times(p, y->type->dims[axis], inner), row_x = mc_plan_times(p, x->type->dims[axis], inner);
    mc_dim begin = mc_plan_times(p, mc_dim_const(mc_attr_int(op, "begin")), inner);
    while (!divides(n, row_y) || !divides(n, row_x) || !divides(n, begin)) n /= 2;
    mc_gpu_code code = {.file = "move.cuh", .threads = MC_GPU_FLAT_THREADS};
    code.call = mc_strf(p->arena, "unslice<%s>(a);", unit_type(n * bytes));
    mc_gpu_grid(&code, 0, 0, MC_GPU_FLAT_THREADS);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, x);
    mc_gpu_value(p, y);
    mc_dim row_units = less(row_y, n);
    mc_gpu_int(p, mc_plan_times(p, mc_plan_product(p, y->type, 0, axis), row_units));
    mc_gpu_int(p, row_units);
    mc_gpu_int(p, less(row_x, n));
    mc_gpu_int(p, less(begin, n));
}
