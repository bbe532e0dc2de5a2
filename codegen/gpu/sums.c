/* sum_to: kernels/sums.cuh. Long sums for few results are cut into parts, which a second launch adds up in order. */
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"

enum { COLUMNS = 32, FOLDS = 8, THREADS = 256 }; /* results of a block */
enum { PARTS = 64, FEW_SUMMED = 512, MANY_RESULTS = 1 << 18 };

typedef struct sum {
    int n_axes;
    mc_dim sizes[MC_MAX_RANK];
    bool kept[MC_MAX_RANK];
    mc_dim results;
} sum;

static sum
sum_of(mc_plan *p, const mc_type *x, const mc_type *y)
{
    mc_dim one = mc_dim_const(1);
    sum s = {.results = mc_plan_count(p, y)};
    for (int a = 0; a < x->rank; a++) {
        if (mc_dim_eq(x->dims[a], one)) continue;
        int at = a - (x->rank - y->rank);
        bool keep = at >= 0 && mc_dim_eq(y->dims[at], x->dims[a]);
        if (s.n_axes && s.kept[s.n_axes - 1] == keep) {
            s.sizes[s.n_axes - 1] = mc_plan_times(p, s.sizes[s.n_axes - 1], x->dims[a]);
        } else {
            s.sizes[s.n_axes] = x->dims[a];
            s.kept[s.n_axes++] = keep;
        }
    }
    if (!s.n_axes) { /* one element */
        s.sizes[s.n_axes++] = one;
        s.kept[0] = true;
    }
    return s;
}

/* One part where the results alone occupy the GPU, their number is not known (and then great), or the sums are short.
 */
static int
parts_of(mc_plan *p, const sum *s)
{
    mc_dim summed = mc_dim_const(1);
    for (int a = 0; a < s->n_axes; a++)
        if (!s->kept[a]) summed = mc_plan_times(p, summed, s->sizes[a]);
    if (!mc_dim_is_const(s->results) || s->results.mul + s->results.add >= MANY_RESULTS) return 1;
    return mc_dim_is_const(summed) && summed.mul + summed.add <= FEW_SUMMED ? 1 : PARTS;
}

static void
launch_parts(mc_plan *p, const mc_value *y, mc_dim results, int parts)
{
    mc_gpu_code code = {.file = "sums.cuh", .threads = MC_GPU_FLAT_THREADS, .call = mc_str_of("sum_parts(a);")};
    mc_gpu_grid(&code, 0, 0, MC_GPU_FLAT_THREADS);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, y);
    mc_gpu_int(p, results);
    mc_plan_const(p, parts);
}

void
mc_gpu_select_sum_to(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *y = mc_result(op, 0);
    if (x->type->dtype != MOEC_F32) {
        mc_plan_refuse(p, "the operand is not f32");
        return;
    }
    sum s = sum_of(p, x->type, y->type);
    int parts = parts_of(p, &s);
    bool columns = s.kept[s.n_axes - 1];
    mc_gpu_code code = {.file = "sums.cuh", .threads = THREADS};
    code.call = mc_strf(p->arena, "%s<%d, %d>(a);", columns ? "sum_columns" : "sum_folds", s.n_axes, parts);
    mc_gpu_grid(&code, 0, 0, columns ? COLUMNS : FOLDS);
    code.grid[1] = (moec_abi_grid_axis){.from = MOEC_ABI_GRID_ONE, .div = 1, .add = (uint32_t)parts};
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_value(p, x);
    mc_gpu_value(p, y);
    mc_gpu_int(p, s.results);
    for (int a = 0; a < s.n_axes; a++) mc_gpu_int(p, s.sizes[a]);
    if (parts == 1) return;
    mc_plan_scratch_dim(p, mc_plan_times(p, s.results, mc_dim_const((int64_t)sizeof(float) * parts)));
    launch_parts(p, y, s.results, parts);
    mc_plan_scratch_dim(p, mc_plan_times(p, s.results, mc_dim_const((int64_t)sizeof(float) * parts)));
}
