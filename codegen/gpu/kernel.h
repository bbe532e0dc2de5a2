/* kernel: what a select function of the GPU backend says about a kernel: which text it is made of, and how it is
 * started. Launches themselves are made with codegen/plan/plan.h, as on the CPU:
 *
 *     mc_gpu_code code = {.file = "norm.cuh", .threads = 256};
 *     code.call = mc_strf(p->arena, "rmsnorm<%lld, %s>(a);", d, plus_one ? "true" : "false");
 *     mc_gpu_grid(&code, 0, 0, 4);                            x: ceil(i[0] / 4) blocks
 *     mc_plan_launch(p, mc_gpu_kernel_get(p, &code, "rmsnorm_%lld_%d", d, plus_one));
 *     mc_gpu_value(p, mc_operand(op, 0));                     ptr[0]
 *     mc_gpu_value(p, mc_result(op, 0));                      ptr[1]
 *     mc_gpu_int(p, rows);                                    i[0]
 *
 * The kernel is   #include "norm.cuh"
 *                 extern "C" __global__ void __launch_bounds__(256) rmsnorm_4096_1(const __grid_constant__ mc_args a)
 *                 { rmsnorm<4096, true>(a); }
 */
#ifndef MC_CODEGEN_GPU_KERNEL_H
#define MC_CODEGEN_GPU_KERNEL_H

#include "codegen/plan/plan.h"

typedef struct mc_gpu_code {
    const char *file; /* of codegen/gpu/kernels, included first */
    mc_str prelude;   /* text at file scope after it, or empty */
    mc_str call;      /* the body; the arguments are `a`, the tensor maps `m` */
    uint32_t threads; /* of a block */
    uint32_t shared;  /* bytes of dynamic shared memory; read as MC_DYNAMIC_SHARED */
    uint32_t blocks;  /* that should fit on a multiprocessor at once; 0: no wish */
    uint32_t cluster; /* blocks of a cluster along x; 0 or 1: none */
    uint32_t per_sm;  /* other than 0: at most this many blocks along x for each multiprocessor; the kernel walks on */
    uint32_t n_maps;
    moec_abi_grid_axis grid[3]; /* all zero: one block along that axis */
    moec_abi_tensor_map maps[MOEC_ABI_MAX_MAPS];
    bool spills_allowed; /* not a hot kernel: the report of spills is no error */
} mc_gpu_code;

typedef struct mc_gpu_kernel {
    mc_gpu_code code;      /* for every architecture but special_arch */
    uint32_t special_arch; /* 0: none */
    const mc_gpu_code *special;
} mc_gpu_kernel;

/* The kernel of this name (letters, digits and _), made when it is new. The code is copied. */
mc_plan_kernel *mc_gpu_kernel_get(mc_plan *p, const mc_gpu_code *code, const char *name_format, ...) MOEC_PRINTF(3, 4);
/* Gives the kernel another form on one architecture (90: sm_90a). */
void mc_gpu_kernel_special(mc_plan *p, mc_plan_kernel *kernel, uint32_t arch, const mc_gpu_code *code);

/* Axis 0, 1 or 2 gets ceil(i[from] / div) blocks. */
void mc_gpu_grid(mc_gpu_code *code, int axis, uint32_t from, uint32_t div);

/* Arguments of the launch being made. As mc_plan_ptr and mc_plan_int, but an integer must not depend on the number of
 * cached positions (C): a launch is replayed for many of them. */
void mc_gpu_value(mc_plan *p, const mc_value *v);
void mc_gpu_int(mc_plan *p, mc_dim value);
/* Whether a size depends on C, and the size without it: C itself gives S, and the kernel adds *past. */
bool mc_gpu_grows(const mc_plan *p, mc_dim d);

/* "f32", "bf16", "f16", "f8", "i32", "i64", ...: the C++ types of base.cuh. */
const char *mc_gpu_type(moec_dtype dtype);

/* The whole text of a kernel for one architecture. */
mc_str mc_gpu_kernel_text(mc_arena *arena, const mc_plan_kernel *kernel, uint32_t arch);
/* The form of it that this architecture runs. */
const mc_gpu_code *mc_gpu_kernel_code(const mc_plan_kernel *kernel, uint32_t arch);

#endif
