/* matmul: what the files of matrix products share: the forms of kernels/product.cuh. */
#ifndef MC_CODEGEN_GPU_MATMUL_H
#define MC_CODEGEN_GPU_MATMUL_H

#include "codegen/gpu/kernel.h"

/* As in kernels/product.cuh. */
enum {
    MC_FORM_EXPERTS = 1,
    MC_FORM_PAIR = 2,
    MC_FORM_COLUMNS = 4,
    MC_FORM_ALIGNED = 8,
    MC_FORM_EVEN = 16,
    MC_FORM_CORES = 32,
    MC_FORM_GATED = 64,
    MC_FORM_ADD = 128,
    MC_FORM_SPLIT = 256
};

enum { MC_GPU_MOST_GROUPS = 1024 /* SCHEDULE_GROUPS */ };

typedef struct mc_gpu_product {
    const char *file, *function;
    moec_dtype x, w, y, r;
    unsigned form;
    mc_str act; /* of a pair; else empty */
} mc_gpu_product;

/* "form<bf16, bf16, f32, f32, EXPERTS | CORES, op_silu>"; the prefix is of the activation, if there is one. */
mc_str mc_gpu_product_form(mc_plan *p, const mc_gpu_product *product, const char *act_prefix);
/* The kernel of a product whose tiles are counted in i[4], with at least `blocks` blocks. */
mc_plan_kernel *mc_gpu_product_kernel(mc_plan *p, const mc_gpu_product *product, int64_t blocks);
/* Refuses an operand that is there and has another type. */
bool mc_gpu_product_is(mc_plan *p, const mc_value *v, moec_dtype dtype, const char *what);
/* ceil(n / div) for a constant. */
int64_t mc_gpu_tiles(int64_t n, int64_t div);

#endif
