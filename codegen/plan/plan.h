/* plan: the tables of a moec_abi_model while they grow, the same for every backend. Selection (one function per family
 * of ops, in codegen/cpu and codegen/gpu) appends launches; the backend then makes code of the kernels that were asked
 * for. Everything lives in the plan's arena.
 *
 * A select function reads an op and makes launches of it:
 *
 *     mc_plan_kernel *k = mc_plan_kernel_get(p, emit_copy, params, n, "copy_%d", bytes);   the same name, the same
 * kernel mc_plan_launch(p, k); mc_plan_ptr(p, mc_operand(op, 0));                 ptr[0] mc_plan_ptr(p, mc_result(op,
 * 0));                  ptr[1] mc_plan_int(p, rows);                              i[0]
 *
 * Refusals are sticky (plan->failed) and reported once per op as backend->refusal, so callers need not check each step.
 */
#ifndef MC_CODEGEN_PLAN_PLAN_H
#define MC_CODEGEN_PLAN_PLAN_H

#include "ir/diag.h"
#include "ir/ir.h"
#include "ir/op.h"
#include "runtime/abi.h"

enum { MC_PLAN_PARAMS = 16 };

typedef struct mc_kb mc_kb; /* codegen/cpu/kb.h */
typedef struct mc_plan_kernel mc_plan_kernel;
typedef struct mc_plan mc_plan;

/* Adds the kernel named k->name to an LLVM module. */
typedef void mc_plan_emit_fn(mc_kb *kb, const mc_plan_kernel *k);
/* Appends the launches of p->op. */
typedef void mc_plan_select_fn(mc_plan *p, const mc_op *op);
/* Whether p->op needs no launch of its own: one that was made before does its work, or one for it and ops after it was
 * made now. */
typedef bool mc_plan_fuse_fn(mc_plan *p, const mc_op *op);

/* A value, or what belongs to one, in a slot that plan-memory knows nothing of. */
typedef struct mc_plan_home {
    const mc_value *value;
    uint32_t slot;
} mc_plan_home;

typedef struct mc_plan_backend {
    const char *name;                 /* "CPU", "GPU" */
    mc_code refusal;                  /* MC_E0601, MC_E0701 */
    mc_plan_select_fn *const *select; /* MC_N_OPCODES of them; NULL: there is no kernel for the op */
    mc_plan_fuse_fn *fuse;            /* asked before select; NULL: never */
    bool ranks;                       /* runs models of several ranks */
} mc_plan_backend;

struct mc_plan_kernel {
    mc_str name;               /* its key too */
    mc_plan_emit_fn *emit;     /* CPU; NULL: a matrix kernel, data is its mc_gemm_spec */
    int64_t p[MC_PLAN_PARAMS]; /* what the emit function specialises on */
    const void *data;          /* GPU: its mc_gpu_kernel (codegen/gpu/kernel.h); CPU: further parameters, or NULL */
    uint32_t index;
};

struct mc_plan {
    mc_arena *arena;
    const mc_module *module;
    mc_diags *diags;
    const mc_plan_backend *backend;
    const struct mc_cpu_target *target; /* CPU only, like the next line */
    int vl;                             /* f32 lanes of its vectors */

    MC_VEC(mc_plan_kernel *) kernels;
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
    MC_VEC(mc_plan_home) moved;      /* values that lie elsewhere than plan-memory said */
    MC_VEC(mc_plan_home) beside;     /* what a launch keeps beside a value for later launches */
    MC_VEC(const mc_op *) done;      /* ops whose work an earlier launch does */
    uint32_t first_slot;             /* of the function being laid */
    uint32_t entry, batch_sym;
    const moec_abi_ep *ep;           /* NULL: one rank */
    uint64_t scratch_bytes;          /* CPU: of each thread */
    MC_VEC(moec_abi_expr) scratches; /* GPU: what single launches need, in bytes; they share the greatest */

    const mc_op *op; /* being selected */
    bool failed;
};

/* Fills every table from a module in stage plan. What the backend's select functions need of the plan (a target) is set
 * before. False: diagnostics say why. */
bool mc_plan_build(mc_plan *p, mc_arena *arena, const mc_module *module, const mc_plan_backend *backend,
                   mc_diags *diags);
/* Everything that decides the bytes of a packed weight file. */
uint64_t mc_plan_hash_weights(const mc_plan *p, mc_str rules);
/* The plan's text, and whatever `seed` stands for. */
uint64_t mc_plan_hash(const mc_module *plan, uint64_t seed);
/* The tables as a descriptor: everything but name, target, hashes and code. Borrows the plan's arrays. */
moec_abi_model mc_plan_abi(const mc_plan *p);

/* Refuses the op being selected: backend->refusal with its name, once per op. Always false. */
bool mc_plan_refuse(mc_plan *p, const char *format, ...) MOEC_PRINTF(2, 3);

/* The kernel of this name, made when it is new. */
mc_plan_kernel *mc_plan_kernel_get(mc_plan *p, mc_plan_emit_fn *emit, const int64_t *params, int n_params,
                                   const char *name_format, ...) MOEC_PRINTF(5, 6);

/* Opens a launch; the following calls give its arguments in order, until the next launch. */
void mc_plan_launch(mc_plan *p, const mc_plan_kernel *kernel);
void mc_plan_ptr(mc_plan *p, const mc_value *v); /* NULL: an absent operand */
void mc_plan_ptr_at(mc_plan *p, const mc_value *v, mc_dim offset_bytes);
void mc_plan_ptr_state(mc_plan *p); /* the state of the op being selected */
void mc_plan_int(mc_plan *p, mc_dim value);
void mc_plan_const(mc_plan *p, int64_t value);
void mc_plan_float(mc_plan *p, double value);
/* Every thread gets at least this much scratch. */
void mc_plan_scratch(mc_plan *p, uint64_t n_bytes);
/* GPU: the launch being made needs that many bytes of scratch memory. */
void mc_plan_scratch_dim(mc_plan *p, mc_dim n_bytes);

/* A further slot of the function being laid. Not between a launch and its arguments. */
uint32_t mc_plan_slot(mc_plan *p, mc_dim n_bytes);
void mc_plan_ptr_slot(mc_plan *p, uint32_t slot);
/* From now on v, which has a slot of plan-memory's, lies in this one. */
void mc_plan_move(mc_plan *p, const mc_value *v, uint32_t slot);

/* Where a value lies, views resolved. */
bool mc_plan_is_const(const mc_value *v, double *out); /* a scalar known at compile time */
bool mc_plan_in_state(const mc_value *v);              /* its batch stride is cache_cap rows */
bool mc_plan_in_gradient(const mc_value *v);           /* added to, nothing when the address is null */

/* Dims of types, refused (and 0) when they leave the normal form. */
mc_dim mc_plan_product(mc_plan *p, const mc_type *t, int from, int to); /* of dims from..to-1; 1 when empty */
mc_dim mc_plan_times(mc_plan *p, mc_dim a, mc_dim b);
mc_dim mc_plan_rows(mc_plan *p, const mc_type *t);  /* all but the last */
mc_dim mc_plan_count(mc_plan *p, const mc_type *t); /* all */
int64_t mc_plan_need_const(mc_plan *p, mc_dim d, const char *what);

/* Whether the op owns memory that lives across steps; its number among those of its function is its state index. */
bool mc_plan_owns_state(const mc_op *op);
moec_abi_expr mc_plan_expr(mc_dim d);

#endif
