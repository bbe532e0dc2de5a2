/* Products on sm_90a: which have a form there, and its tensor maps. Arguments are those of kernels/product.cuh. */
#include "codegen/gpu/hopper.h"

enum {
    ARCH = 90,
    THREADS = 384,
    /* kernels/hopper.cuh: stages of 128 rows of x and 256 lines of weights, 64 k (128 bytes) of each, and what the
     * alignment to 1024 may take. */
    STAGES = 4,
    SHARED = STAGES * (128 + 256) * 128 + 1024,
    BRICK = 64, /* rows and elements of a box */
    SWIZZLE = 128
};

/* In the arguments of kernels/product.cuh. */
enum { PTR_X = 1, PTR_W = 2, PTR_W_UP = 3, INT_ROWS = 0, INT_K = 1, INT_N = 2, INT_GROUPS = 3 };

static void
add_map(mc_gpu_code *code, uint32_t ptr, moec_dtype dtype, uint32_t rows, bool matrices)
{
    moec_abi_tensor_map *m = &code->maps[code->n_maps++];
    *m = (moec_abi_tensor_map){.ptr = ptr, .dtype = (uint32_t)dtype, .rank = matrices ? 3 : 2, .swizzle = SWIZZLE};
    m->dims[0] = INT_K;
    m->dims[1] = rows;
    m->dims[2] = INT_GROUPS;
    m->box[0] = m->box[1] = BRICK;
    m->box[2] = 1;
}

/* The activations that hopper.cuh makes of quick instructions. */
static bool
is_quick(mc_str act)
{
    return mc_str_is(act, "silu") || mc_str_is(act, "gelu_tanh") || mc_str_is(act, "sigmoid");
}

void
mc_gpu_hopper_product(mc_plan *p, mc_plan_kernel *kernel, const mc_gpu_product *product)
{
    if (!(product->form & MC_FORM_CORES) || product->form & MC_FORM_COLUMNS || product->x != product->w) return;
    const mc_gpu_code *portable = &((const mc_gpu_kernel *)kernel->data)->code;
    mc_gpu_code code = {.file = "hopper.cuh", .threads = THREADS, .shared = SHARED, .blocks = 1, .per_sm = 1};
    mc_str form = mc_gpu_product_form(p, product, is_quick(product->act) ? "quick_" : "op_");
    code.call = mc_strf(p->arena, "hopper<%.*s>(a, m);", MC_FMT(form));
    code.grid[0] = portable->grid[0];
    add_map(&code, PTR_W, product->w, INT_N, true);
    if (product->form & MC_FORM_PAIR) add_map(&code, PTR_W_UP, product->w, INT_N, true);
    add_map(&code, PTR_X, product->x, INT_ROWS, false);
    mc_gpu_kernel_special(p, kernel, ARCH, &code);
}
