/* kb: the kernel builder, a thin layer over LLVM's C API in which every kernel of the CPU backend is written.
 *
 *     kb_kernel_begin(kb, "add");                          void add(const moec_kernel_args *)
 *     LLVMValueRef x = kb_arg_ptr(kb, 0), y = kb_arg_ptr(kb, 1), begin, end;
 *     kb_split(kb, kb_arg_int(kb, 0), 64, &begin, &end);   this thread's share
 *     for (kb_vloop l = kb_vloop_begin(kb, begin, end, 0, NULL); kb_vloop_next(kb, &l);) {
 *         LLVMValueRef at = kb_mul(kb, l.i, kb_i64(kb, 4));
 *         LLVMValueRef v = kb_load_f32(kb, MOEC_F32, kb_gep(kb, x, at), l.lanes, l.mask);
 *         kb_store_f32(kb, MOEC_F32, kb_fadd(kb, v, v), kb_gep(kb, y, at), l.mask);
 *     }
 *     kb_kernel_end(kb);
 *
 * Values are LLVM's own; helpers work on scalars and vectors alike unless they say otherwise. Code is emitted in its
 * final form: no pass runs over it, so what stands here is what the machine does. Nothing may call libm or libc. */
#ifndef MC_CODEGEN_CPU_KB_H
#define MC_CODEGEN_CPU_KB_H

#include "codegen/cpu/target.h"
#include "runtime/abi.h"
#include "runtime/base/map.h"

#include <llvm-c/Core.h>

enum { KB_MAX_CARRIED = 64, KB_MAX_NESTED = 4 };

typedef struct kb_frame { /* a function under construction */
    LLVMValueRef fn;
    LLVMBasicBlockRef entry;
    LLVMBasicBlockRef at; /* where it goes on after a function opened inside it has ended */
} kb_frame;

/* One LLVM module and everything needed to add functions to it. Belongs to one thread. */
typedef struct mc_kb {
    mc_arena *arena; /* names */
    mc_cpu_target target;
    LLVMContextRef ctx;
    LLVMModuleRef module;
    LLVMBuilderRef b;
    LLVMTypeRef t_void, i1, i8, i16, i32, i64, f16, f32, f64, ptr;
    int vl;             /* lanes of the vectors below */
    LLVMTypeRef vf, vi; /* <vl x float>, <vl x i32> */
    mc_map functions;   /* name -> function, kernels and helpers, in the order made */
    mc_map kernels;     /* name -> function, kernels only */
    kb_frame frames[KB_MAX_NESTED];
    int n_frames;
} mc_kb;

/* Owned by the caller. The arena must outlive it. */
mc_kb *mc_kb_create(const mc_cpu_target *target, const char *module_name, mc_arena *arena);
void mc_kb_destroy(mc_kb *kb); /* NULL is allowed */

/* ---- functions ------------------------------------------------------------------------------------------------ */

/* The kernel or helper made under this name, or NULL: how "make it once" is done. */
LLVMValueRef kb_find(const mc_kb *kb, const char *name);
/* Opens a kernel, external, of type moec_kernel_fn. Functions may be opened inside others (KB_MAX_NESTED deep):
 * ending the inner one goes on where the outer one stood. Returns the name, which lives in the arena. */
const char *kb_kernel_begin(mc_kb *kb, const char *name);
void kb_kernel_end(mc_kb *kb); /* adds the return */
/* A helper, internal to the module. kb_param gives its parameters. */
LLVMValueRef kb_function_begin(mc_kb *kb, const char *name, LLVMTypeRef result, const LLVMTypeRef *params, int n);
LLVMValueRef kb_param(const mc_kb *kb, int index);
void kb_function_end(mc_kb *kb, LLVMValueRef result); /* NULL: returns nothing */
LLVMValueRef kb_call(mc_kb *kb, LLVMValueRef fn, const LLVMValueRef *args, int n);
/* n_bytes of stack, in the function's entry block wherever the builder stands. */
LLVMValueRef kb_alloca(mc_kb *kb, int64_t n_bytes, unsigned align);

/* What a kernel receives. Each call loads at the current place: load once, before loops. */
LLVMValueRef kb_arg_ptr(mc_kb *kb, int index);
LLVMValueRef kb_arg_int(mc_kb *kb, int index);   /* i64 */
LLVMValueRef kb_arg_float(mc_kb *kb, int index); /* f32, narrowed from the double */
LLVMValueRef kb_thread(mc_kb *kb);
LLVMValueRef kb_n_threads(mc_kb *kb);
LLVMValueRef kb_past(mc_kb *kb);
LLVMValueRef kb_cache_cap(mc_kb *kb);
LLVMValueRef kb_scratch(mc_kb *kb);
/* This thread's contiguous part of [0, n), in units of `grain` (the last may be shorter), as even as units allow. */
void kb_split(mc_kb *kb, LLVMValueRef n, int64_t grain, LLVMValueRef *begin, LLVMValueRef *end);
/* The same for part `part` of `n_parts`. */
void kb_split_part(mc_kb *kb, LLVMValueRef n, LLVMValueRef grain, LLVMValueRef part, LLVMValueRef n_parts,
                   LLVMValueRef *begin, LLVMValueRef *end);

/* ---- types and constants -------------------------------------------------------------------------------------- */
LLVMTypeRef kb_vector(LLVMTypeRef element, int lanes);    /* the element itself for 1 lane */
int kb_lanes(LLVMValueRef v);                             /* 1 for a scalar */
LLVMTypeRef kb_like(LLVMTypeRef element, LLVMValueRef v); /* element, as wide as v */
LLVMValueRef kb_i64(const mc_kb *kb, int64_t x);
LLVMValueRef kb_i32(const mc_kb *kb, int32_t x);
LLVMValueRef kb_bool(const mc_kb *kb, bool x);
LLVMValueRef kb_f32(const mc_kb *kb, double x);                   /* rounded to f32 */
LLVMValueRef kb_const(LLVMTypeRef type, double x);                /* of a float type, splat when it is a vector */
LLVMValueRef kb_iconst(LLVMTypeRef type, int64_t x);              /* of an integer type, splat when it is a vector */
LLVMValueRef kb_splat(mc_kb *kb, LLVMValueRef scalar, int lanes); /* itself for 1 lane */
LLVMValueRef kb_lane_ids(const mc_kb *kb, int lanes);             /* <0, 1, 2, ...> of i32 */

/* ---- memory --------------------------------------------------------------------------------------------------- */
LLVMValueRef kb_gep(mc_kb *kb, LLVMValueRef p, LLVMValueRef n_bytes);
LLVMValueRef kb_gepi(mc_kb *kb, LLVMValueRef p, int64_t n_bytes);
/* p + index * element_bytes */
LLVMValueRef kb_elem(mc_kb *kb, LLVMValueRef p, LLVMValueRef index, int64_t element_bytes);
LLVMValueRef kb_load(mc_kb *kb, LLVMTypeRef type, LLVMValueRef p, unsigned align);
void kb_store(mc_kb *kb, LLVMValueRef v, LLVMValueRef p, unsigned align);
/* With a mask <n x i1> (NULL: all): lanes that are off read as zero and are not written. */
LLVMValueRef kb_load_masked(mc_kb *kb, LLVMTypeRef type, LLVMValueRef p, unsigned align, LLVMValueRef mask);
void kb_store_masked(mc_kb *kb, LLVMValueRef v, LLVMValueRef p, unsigned align, LLVMValueRef mask);
/* `lanes` elements of a storage dtype (f32, bf16, f16, f8e4m3, f8e5m2), widened exactly to f32; mask as above. */
LLVMValueRef kb_load_f32(mc_kb *kb, moec_dtype dtype, LLVMValueRef p, int lanes, LLVMValueRef mask);
/* Rounds to dtype (f32, bf16, f16) as mc_f32_to_* do, then stores. */
void kb_store_f32(mc_kb *kb, moec_dtype dtype, LLVMValueRef v, LLVMValueRef p, LLVMValueRef mask);
/* Raw bits (i32 float bits, i16, i8 lanes) to f32, and back. */
LLVMValueRef kb_widen(mc_kb *kb, moec_dtype dtype, LLVMValueRef raw);
LLVMValueRef kb_narrow(mc_kb *kb, moec_dtype dtype, LLVMValueRef v);
void kb_prefetch(mc_kb *kb, LLVMValueRef p);

/* ---- arithmetic ----------------------------------------------------------------------------------------------- */
/* clang-format off */
#define KB_BINARY(name, build)                                                                                         \
    static inline LLVMValueRef kb_##name(mc_kb *kb, LLVMValueRef x, LLVMValueRef y) { return build(kb->b, x, y, ""); }
KB_BINARY(add, LLVMBuildAdd)   KB_BINARY(sub, LLVMBuildSub)   KB_BINARY(mul, LLVMBuildMul)
KB_BINARY(udiv, LLVMBuildUDiv) KB_BINARY(urem, LLVMBuildURem)
KB_BINARY(sdiv, LLVMBuildSDiv) KB_BINARY(srem, LLVMBuildSRem)
KB_BINARY(and, LLVMBuildAnd)   KB_BINARY(or, LLVMBuildOr)     KB_BINARY(xor, LLVMBuildXor)
KB_BINARY(shl, LLVMBuildShl)   KB_BINARY(lshr, LLVMBuildLShr) KB_BINARY(ashr, LLVMBuildAShr)
KB_BINARY(fadd, LLVMBuildFAdd) KB_BINARY(fsub, LLVMBuildFSub)
KB_BINARY(fmul, LLVMBuildFMul) KB_BINARY(fdiv, LLVMBuildFDiv)
#undef KB_BINARY
    /* clang-format on */
    LLVMValueRef kb_icmp(mc_kb *kb, LLVMIntPredicate op, LLVMValueRef x, LLVMValueRef y);
LLVMValueRef kb_fcmp(mc_kb *kb, LLVMRealPredicate op, LLVMValueRef x, LLVMValueRef y);
LLVMValueRef kb_select(mc_kb *kb, LLVMValueRef condition, LLVMValueRef yes, LLVMValueRef no);
LLVMValueRef kb_min(mc_kb *kb, LLVMValueRef x, LLVMValueRef y); /* signed integers */
LLVMValueRef kb_max(mc_kb *kb, LLVMValueRef x, LLVMValueRef y);
/* y when either is NaN, as x86's minps and maxps: fmin(kb, bound, x) keeps a NaN x. */
LLVMValueRef kb_fmin(mc_kb *kb, LLVMValueRef x, LLVMValueRef y);
LLVMValueRef kb_fmax(mc_kb *kb, LLVMValueRef x, LLVMValueRef y);
LLVMValueRef kb_fma(mc_kb *kb, LLVMValueRef x, LLVMValueRef y, LLVMValueRef z); /* x * y + z, rounded once */
LLVMValueRef kb_fneg(mc_kb *kb, LLVMValueRef x);
LLVMValueRef kb_fabs(mc_kb *kb, LLVMValueRef x);
LLVMValueRef kb_copysign(mc_kb *kb, LLVMValueRef magnitude, LLVMValueRef sign);
LLVMValueRef kb_sqrt(mc_kb *kb, LLVMValueRef x); /* correctly rounded */
LLVMValueRef kb_rint(mc_kb *kb, LLVMValueRef x);
LLVMValueRef kb_floor(mc_kb *kb, LLVMValueRef x);
LLVMValueRef kb_bits(mc_kb *kb, LLVMValueRef v, LLVMTypeRef type); /* the same bits as another type */
LLVMValueRef kb_convert(mc_kb *kb, LLVMValueRef v,
                        LLVMTypeRef type); /* signed int <-> float, float <-> float, sext/trunc */
LLVMValueRef kb_zext(mc_kb *kb, LLVMValueRef v, LLVMTypeRef type);
LLVMValueRef kb_extract(mc_kb *kb, LLVMValueRef vector, int lane);
LLVMValueRef kb_shuffle(mc_kb *kb, LLVMValueRef x, LLVMValueRef y, const int *lanes, int n);
/* Any intrinsic by name; `types` are those it is overloaded on. */
LLVMValueRef kb_intrinsic(mc_kb *kb, const char *name, const LLVMTypeRef *types, int n_types, const LLVMValueRef *args,
                          int n_args);
/* Reductions to a scalar in one fixed order: the n vectors end to end are halved (lane i with lane i + half) until one
 * is left, so 16 lanes in all give the same bits whether a register holds 4, 8 or 16. n * lanes: a power of two. */
LLVMValueRef kb_reduce_add(mc_kb *kb, const LLVMValueRef *v, int n);
LLVMValueRef kb_reduce_max(mc_kb *kb, const LLVMValueRef *v, int n); /* by kb_fmax: not for NaN */

/* ---- control -------------------------------------------------------------------------------------------------- */
/* for (i = begin; i < end; i += step), signed, with n values carried from one turn to the next: v[] holds this turn's
 * values after begin, must hold the next turn's before end, and holds the final ones after end.
 *     kb_loop l = kb_loop_begin(kb, zero, n, kb_i64(kb, 1), 1, &sum);
 *     l.v[0] = kb_fadd(kb, l.v[0], ...);
 *     kb_loop_end(kb, &l); */
typedef struct kb_loop {
    LLVMValueRef i;
    LLVMValueRef v[KB_MAX_CARRIED];
    int n;
    LLVMValueRef end, step, phi[KB_MAX_CARRIED], init[KB_MAX_CARRIED]; /* private from here */
    LLVMBasicBlockRef before, body, after;
} kb_loop;

kb_loop kb_loop_begin(mc_kb *kb, LLVMValueRef begin, LLVMValueRef end, LLVMValueRef step, int n,
                      const LLVMValueRef *init);
void kb_loop_end(mc_kb *kb, kb_loop *l);

/*     kb_if c = kb_if_begin(kb, condition);  ...  [kb_else(kb, &c);  ...]  kb_if_end(kb, &c);
 *     LLVMValueRef v = kb_if_value(kb, &c, from_then, from_else);   right after the end */
typedef struct kb_if {
    LLVMBasicBlockRef then_end, else_end, otherwise, join; /* private */
} kb_if;

kb_if kb_if_begin(mc_kb *kb, LLVMValueRef condition);
void kb_else(mc_kb *kb, kb_if *c);
void kb_if_end(mc_kb *kb, kb_if *c);
LLVMValueRef kb_if_value(mc_kb *kb, const kb_if *c, LLVMValueRef from_then, LLVMValueRef from_else);

/* Vectors over the elements begin..end-1: the body, written once, is emitted twice: in a loop over whole vectors
 * (mask NULL) and for the rest under a mask.
 *     kb_vloop l = kb_vloop_begin(kb, begin, end, 1, &zero_vector);
 *     while (kb_vloop_next(kb, &l)) { ... l.i, l.lanes, l.mask ...; l.v[0] = ...; }
 *     then l.v[0] is final. Carried values of masked-off lanes must be kept by the body: kb_keep. */
typedef struct kb_vloop {
    LLVMValueRef i;    /* index of the first lane */
    LLVMValueRef mask; /* NULL: all lanes */
    int lanes;
    LLVMValueRef v[KB_MAX_CARRIED];
    int n;
    int phase; /* private from here */
    LLVMValueRef end, whole_end, saved[KB_MAX_CARRIED];
    kb_loop loop;
    kb_if rest;
} kb_vloop;

kb_vloop kb_vloop_begin(mc_kb *kb, LLVMValueRef begin, LLVMValueRef end, int n, const LLVMValueRef *init);
bool kb_vloop_next(mc_kb *kb, kb_vloop *l);
/* next where the mask is on (or NULL), old elsewhere. */
LLVMValueRef kb_keep(mc_kb *kb, LLVMValueRef mask, LLVMValueRef next, LLVMValueRef old);

#endif
