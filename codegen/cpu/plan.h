/* plan: the tables of a moec_abi_model while they grow. Selection (one function per family of ops) appends launches;
 * tables.c turns the finished plan into LLVM constants. Everything lives in the plan's arena.
 *
 * A select function reads an op and makes launches of it:
 *
 *     mc_cpu_kernel *k = mc_cpu_kernel_get(p, emit_copy, params, n, "copy_%d", bytes);   the same name, the same kernel
 *     mc_cpu_launch(p, k);
 *     mc_cpu_ptr(p, mc_operand(op, 0));                 ptr[0]
 *     mc_cpu_ptr(p, mc_result(op, 0));                  ptr[1]
 *     mc_cpu_int(p, rows);                              i[0]
 *
 * Refusals are sticky (plan->failed) and reported once per op as E0601, so callers need not check each step. */
#ifndef MC_CODEGEN_CPU_PLAN_H
#define MC_CODEGEN_CPU_PLAN_H

#include "ir/diag.h"
#include "ir/ir.h"
#include "ir/op.h"
#include "runtime/abi.h"

enum { MC_CPU_PARAMS = 16 };

typedef struct mc_kb mc_kb; /* codegen/cpu/kb.h */
typedef struct mc_cpu_kernel mc_cpu_kernel;
typedef struct mc_cpu_plan mc_cpu_plan;

/* Adds the kernel named k->name to the module. */
typedef void mc_cpu_emit_fn(mc_kb *kb, const mc_cpu_kernel *k);

struct mc_cpu_kernel {
    mc_str name;              /* its key too */
    mc_cpu_emit_fn *emit;     /* NULL: a matrix kernel, data is its mc_gemm_spec */
    int64_t p[MC_CPU_PARAMS]; /* what the emit function specialises on */
    const void *data;         /* further parameters, or NULL */
    uint32_t index;
};

struct mc_cpu_plan {
    mc_arena *arena;
    const mc_module *module;
    mc_diags *diags;
    const struct mc_cpu_target *target;
    int vl; /* f32 lanes of its vectors */

    MC_VEC(mc_cpu_kernel *) kernels;
    mc_map kernel_names;

    MC_VEC(moec_abi_sym) syms;
    MC_VEC(moec_abi_tensor) inputs;
    MC_VEC(moec_abi_tensor) outputs;
    MC_VEC(moec_abi_tensor) saved; /* training only, like the next three lines */
    MC_VEC(uint32_t) cotangents;
    MC_VEC(uint32_t) input_grads;
    uint32_t backward, backward_weight_base; /* backward: UINT32_MAX when there is none */
    MC_VEC(moec_abi_weight) weights;
    MC_VEC(moec_abi_state) states;
    MC_VEC(moec_abi_func) funcs;
    MC_VEC(moec_abi_launch) launches;
    MC_VEC(moec_abi_slot) slots;
    MC_VEC(moec_abi_ref) refs;
    MC_VEC(moec_abi_expr) exprs;
    MC_VEC(double) floats;
    MC_VEC(char) strings;
    MC_VEC(const mc_func *) func_of; /* funcs[i] was made from func_of.items[i] */
    uint32_t entry, batch_sym;
    uint64_t scratch_bytes;

    const mc_op *op; /* being selected */
    bool failed;
};

/* Fills every table from a module in stage plan. False: diagnostics say why. */
bool mc_cpu_plan_build(mc_cpu_plan *p, mc_arena *arena, const mc_module *module, const struct mc_cpu_target *target,
                       mc_diags *diags);

/* Refuses the op being selected: E0601 with its name, once per op. Always false. */
bool mc_cpu_refuse(mc_cpu_plan *p, const char *format, ...) MOEC_PRINTF(2, 3);

/* The kernel of this name, made when it is new. */
mc_cpu_kernel *mc_cpu_kernel_get(mc_cpu_plan *p, mc_cpu_emit_fn *emit, const int64_t *params, int n_params,
                                 const char *name_format, ...) MOEC_PRINTF(5, 6);

/* Opens a launch; the following calls give its arguments in order, until the next launch. */
void mc_cpu_launch(mc_cpu_plan *p, const mc_cpu_kernel *kernel);
void mc_cpu_ptr(mc_cpu_plan *p, const mc_value *v); /* NULL: an absent operand */
void mc_cpu_ptr_at(mc_cpu_plan *p, const mc_value *v, mc_dim offset_bytes);
void mc_cpu_ptr_state(mc_cpu_plan *p); /* the state of the op being selected */
void mc_cpu_int(mc_cpu_plan *p, mc_dim value);
void mc_cpu_const(mc_cpu_plan *p, int64_t value);
void mc_cpu_float(mc_cpu_plan *p, double value);
/* Every thread gets at least this much scratch. */
void mc_cpu_scratch(mc_cpu_plan *p, uint64_t n_bytes);

/* Where a value lies, views resolved. */
bool mc_cpu_is_const(const mc_value *v, double *out); /* a scalar known at compile time */
bool mc_cpu_in_state(const mc_value *v);              /* its batch stride is cache_cap rows */
bool mc_cpu_in_gradient(const mc_value *v);           /* added to, nothing when the address is null */

/* Dims of types, refused (and 0) when they leave the normal form. */
mc_dim mc_cpu_product(mc_cpu_plan *p, const mc_type *t, int from, int to); /* of dims from..to-1; 1 when empty */
mc_dim mc_cpu_times(mc_cpu_plan *p, mc_dim a, mc_dim b);
mc_dim mc_cpu_rows(mc_cpu_plan *p, const mc_type *t);  /* all but the last */
mc_dim mc_cpu_count(mc_cpu_plan *p, const mc_type *t); /* all */
int64_t mc_cpu_need_const(mc_cpu_plan *p, mc_dim d, const char *what);

/* Whether the op owns memory that lives across steps; its number among those of its function is its state index. */
bool mc_cpu_owns_state(const mc_op *op);
moec_abi_expr mc_cpu_expr(mc_dim d);

#endif
