/* The module, functions, types and constants of the kernel builder; kb_ops.c has the instructions, kb_control.c the
 * loops. Every function carries its target as string attributes, so an object needs no command line to be made again.
 */
#include "codegen/cpu/kb.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static void
init_types(mc_kb *kb)
{
    LLVMContextRef c = kb->ctx;
    kb->t_void = LLVMVoidTypeInContext(c);
    kb->i1 = LLVMInt1TypeInContext(c);
    kb->i8 = LLVMInt8TypeInContext(c);
    kb->i16 = LLVMInt16TypeInContext(c);
    kb->i32 = LLVMInt32TypeInContext(c);
    kb->i64 = LLVMInt64TypeInContext(c);
    kb->f16 = LLVMHalfTypeInContext(c);
    kb->f32 = LLVMFloatTypeInContext(c);
    kb->f64 = LLVMDoubleTypeInContext(c);
    kb->ptr = LLVMPointerTypeInContext(c, 0);
    kb->vf = LLVMVectorType(kb->f32, (unsigned)kb->vl);
    kb->vi = LLVMVectorType(kb->i32, (unsigned)kb->vl);
}

mc_kb *
mc_kb_create(const mc_cpu_target *target, const char *module_name, mc_arena *arena)
{
    mc_kb *kb = MC_NEW(arena, mc_kb);
    kb->arena = arena;
    kb->target = *target;
    kb->vl = target->vl;
    kb->ctx = LLVMContextCreate();
    kb->module = LLVMModuleCreateWithNameInContext(module_name, kb->ctx);
    kb->b = LLVMCreateBuilderInContext(kb->ctx);
    LLVMSetTarget(kb->module, target->triple);
    init_types(kb);
    mc_map_init(&kb->functions, arena);
    mc_map_init(&kb->kernels, arena);
    return kb;
}

void
mc_kb_destroy(mc_kb *kb)
{
    if (!kb) return;
    LLVMDisposeBuilder(kb->b);
    LLVMDisposeModule(kb->module);
    LLVMContextDispose(kb->ctx);
}

/* ---- functions ------------------------------------------------------------------------------------------------ */

LLVMValueRef
kb_find(const mc_kb *kb, const char *name)
{
    return mc_map_get(&kb->functions, mc_str_of(name));
}

static void
enum_attribute(mc_kb *kb, LLVMValueRef fn, LLVMAttributeIndex index, const char *name)
{
    unsigned kind = LLVMGetEnumAttributeKindForName(name, strlen(name));
    LLVMAddAttributeAtIndex(fn, index, LLVMCreateEnumAttribute(kb->ctx, kind, 0));
}

static void
string_attribute(mc_kb *kb, LLVMValueRef fn, const char *key, const char *value)
{
    LLVMAttributeRef a = LLVMCreateStringAttribute(kb->ctx, key, (unsigned)strlen(key), value, (unsigned)strlen(value));
    LLVMAddAttributeAtIndex(fn, LLVMAttributeFunctionIndex, a);
}

static LLVMValueRef
open_function(mc_kb *kb, mc_str name, LLVMTypeRef result, const LLVMTypeRef *params, int n)
{
    assert(kb->n_frames < KB_MAX_NESTED && !mc_map_has(&kb->functions, name));
    LLVMTypeRef types[16];
    assert(n <= 16);
    for (int i = 0; i < n; i++) types[i] = params[i];
    LLVMValueRef fn = LLVMAddFunction(kb->module, name.data, LLVMFunctionType(result, types, (unsigned)n, 0));
    mc_map_set(&kb->functions, name, fn);
    enum_attribute(kb, fn, LLVMAttributeFunctionIndex, "nounwind");
    string_attribute(kb, fn, "target-cpu", kb->target.cpu);
    string_attribute(kb, fn, "target-features", kb->target.llvm_features);
    string_attribute(kb, fn, "prefer-vector-width", kb->vl == 16 ? "512" : "256");
    string_attribute(kb, fn, "no-builtins", "true");
    if (kb->n_frames) kb->frames[kb->n_frames - 1].at = LLVMGetInsertBlock(kb->b);
    LLVMBasicBlockRef entry = LLVMAppendBasicBlockInContext(kb->ctx, fn, "entry");
    kb->frames[kb->n_frames++] = (kb_frame){fn, entry, NULL};
    LLVMPositionBuilderAtEnd(kb->b, entry);
    return fn;
}

static void
close_function(mc_kb *kb)
{
    assert(kb->n_frames > 0);
    kb->n_frames--;
    if (kb->n_frames) LLVMPositionBuilderAtEnd(kb->b, kb->frames[kb->n_frames - 1].at);
}

const char *
kb_kernel_begin(mc_kb *kb, const char *name)
{
    mc_str own = mc_str_dup(kb->arena, mc_str_of(name));
    LLVMValueRef fn = open_function(kb, own, kb->t_void, &kb->ptr, 1);
    static const char *const promises[] = {"noalias", "nonnull", "readonly"};
    for (int i = 0; i < 3; i++) enum_attribute(kb, fn, 1, promises[i]);
    mc_map_set(&kb->kernels, own, fn);
    return own.data;
}

void
kb_kernel_end(mc_kb *kb)
{
    LLVMBuildRetVoid(kb->b);
    close_function(kb);
}

LLVMValueRef
kb_function_begin(mc_kb *kb, const char *name, LLVMTypeRef result, const LLVMTypeRef *params, int n)
{
    LLVMValueRef fn = open_function(kb, mc_str_dup(kb->arena, mc_str_of(name)), result, params, n);
    LLVMSetLinkage(fn, LLVMInternalLinkage);
    return fn;
}

LLVMValueRef
kb_param(const mc_kb *kb, int index)
{
    return LLVMGetParam(kb->frames[kb->n_frames - 1].fn, (unsigned)index);
}

void
kb_function_end(mc_kb *kb, LLVMValueRef result)
{
    if (result)
        LLVMBuildRet(kb->b, result);
    else
        LLVMBuildRetVoid(kb->b);
    close_function(kb);
}

LLVMValueRef
kb_call(mc_kb *kb, LLVMValueRef fn, const LLVMValueRef *args, int n)
{
    LLVMValueRef copies[16];
    assert(n <= 16);
    for (int i = 0; i < n; i++) copies[i] = args[i];
    return LLVMBuildCall2(kb->b, LLVMGlobalGetValueType(fn), fn, copies, (unsigned)n, "");
}

LLVMValueRef
kb_alloca(mc_kb *kb, int64_t n_bytes, unsigned align)
{
    LLVMBasicBlockRef here = LLVMGetInsertBlock(kb->b), entry = kb->frames[kb->n_frames - 1].entry;
    LLVMValueRef first = LLVMGetFirstInstruction(entry);
    if (first)
        LLVMPositionBuilderBefore(kb->b, first);
    else
        LLVMPositionBuilderAtEnd(kb->b, entry);
    LLVMValueRef p = LLVMBuildAlloca(kb->b, LLVMArrayType2(kb->i8, (uint64_t)n_bytes), "");
    LLVMSetAlignment(p, align);
    LLVMPositionBuilderAtEnd(kb->b, here);
    return p;
}

/* ---- the kernel's arguments ----------------------------------------------------------------------------------- */

static LLVMValueRef
load_arg(mc_kb *kb, LLVMTypeRef type, size_t offset)
{
    return kb_load(kb, type, kb_gepi(kb, kb_param(kb, 0), (int64_t)offset), 8);
}

LLVMValueRef
kb_arg_ptr(mc_kb *kb, int index)
{
    assert(index >= 0 && index < MOEC_ABI_MAX_PTRS);
    return load_arg(kb, kb->ptr, offsetof(moec_kernel_args, ptr) + sizeof(void *) * (size_t)index);
}

LLVMValueRef
kb_arg_int(mc_kb *kb, int index)
{
    assert(index >= 0 && index < MOEC_ABI_MAX_INTS);
    return load_arg(kb, kb->i64, offsetof(moec_kernel_args, i) + sizeof(int64_t) * (size_t)index);
}

LLVMValueRef
kb_arg_float(mc_kb *kb, int index)
{
    assert(index >= 0 && index < MOEC_ABI_MAX_FLOATS);
    LLVMValueRef v = load_arg(kb, kb->f64, offsetof(moec_kernel_args, f) + sizeof(double) * (size_t)index);
    return kb_convert(kb, v, kb->f32);
}

LLVMValueRef
kb_thread(mc_kb *kb)
{
    return load_arg(kb, kb->i64, offsetof(moec_kernel_args, thread));
}

LLVMValueRef
kb_n_threads(mc_kb *kb)
{
    return load_arg(kb, kb->i64, offsetof(moec_kernel_args, n_threads));
}

LLVMValueRef
kb_past(mc_kb *kb)
{
    return load_arg(kb, kb->i64, offsetof(moec_kernel_args, past));
}

LLVMValueRef
kb_cache_cap(mc_kb *kb)
{
    return load_arg(kb, kb->i64, offsetof(moec_kernel_args, cache_cap));
}

LLVMValueRef
kb_scratch(mc_kb *kb)
{
    return load_arg(kb, kb->ptr, offsetof(moec_kernel_args, scratch));
}

void
kb_split_part(mc_kb *kb, LLVMValueRef n, LLVMValueRef grain, LLVMValueRef part, LLVMValueRef n_parts,
              LLVMValueRef *begin, LLVMValueRef *end)
{
    LLVMValueRef one = kb_i64(kb, 1);
    LLVMValueRef units = kb_udiv(kb, kb_add(kb, n, kb_sub(kb, grain, one)), grain);
    LLVMValueRef each = kb_udiv(kb, units, n_parts), more = kb_urem(kb, units, n_parts);
    LLVMValueRef next = kb_add(kb, part, one);
    LLVMValueRef first = kb_add(kb, kb_mul(kb, each, part), kb_min(kb, part, more));
    LLVMValueRef last = kb_add(kb, kb_mul(kb, each, next), kb_min(kb, next, more));
    *begin = kb_min(kb, kb_mul(kb, first, grain), n);
    *end = kb_min(kb, kb_mul(kb, last, grain), n);
}

void
kb_split(mc_kb *kb, LLVMValueRef n, int64_t grain, LLVMValueRef *begin, LLVMValueRef *end)
{
    kb_split_part(kb, n, kb_i64(kb, grain), kb_thread(kb), kb_n_threads(kb), begin, end);
}

/* ---- types and constants -------------------------------------------------------------------------------------- */

LLVMTypeRef
kb_vector(LLVMTypeRef element, int lanes)
{
    return lanes == 1 ? element : LLVMVectorType(element, (unsigned)lanes);
}

static bool
is_vector(LLVMTypeRef t)
{
    return LLVMGetTypeKind(t) == LLVMVectorTypeKind;
}

int
kb_lanes(LLVMValueRef v)
{
    LLVMTypeRef t = LLVMTypeOf(v);
    return is_vector(t) ? (int)LLVMGetVectorSize(t) : 1;
}

LLVMTypeRef
kb_like(LLVMTypeRef element, LLVMValueRef v)
{
    return kb_vector(element, kb_lanes(v));
}

LLVMValueRef
kb_i64(const mc_kb *kb, int64_t x)
{
    return LLVMConstInt(kb->i64, (uint64_t)x, 1);
}

LLVMValueRef
kb_i32(const mc_kb *kb, int32_t x)
{
    return LLVMConstInt(kb->i32, (uint32_t)x, 0);
}

LLVMValueRef
kb_bool(const mc_kb *kb, bool x)
{
    return LLVMConstInt(kb->i1, x, 0);
}

LLVMValueRef
kb_f32(const mc_kb *kb, double x)
{
    return LLVMConstReal(kb->f32, x);
}

static LLVMValueRef
const_splat(LLVMTypeRef type, LLVMValueRef element)
{
    LLVMValueRef all[64];
    unsigned n = LLVMGetVectorSize(type);
    assert(n <= 64);
    for (unsigned i = 0; i < n; i++) all[i] = element;
    return LLVMConstVector(all, n);
}

LLVMValueRef
kb_const(LLVMTypeRef type, double x)
{
    return is_vector(type) ? const_splat(type, LLVMConstReal(LLVMGetElementType(type), x)) : LLVMConstReal(type, x);
}

LLVMValueRef
kb_iconst(LLVMTypeRef type, int64_t x)
{
    LLVMTypeRef element = is_vector(type) ? LLVMGetElementType(type) : type;
    unsigned width = LLVMGetIntTypeWidth(element);
    uint64_t bits = width < 64 ? (uint64_t)x & (((uint64_t)1 << width) - 1) : (uint64_t)x;
    LLVMValueRef one = LLVMConstInt(element, bits, 0);
    return is_vector(type) ? const_splat(type, one) : one;
}

LLVMValueRef
kb_splat(mc_kb *kb, LLVMValueRef scalar, int lanes)
{
    if (lanes == 1) return scalar;
    LLVMTypeRef type = LLVMVectorType(LLVMTypeOf(scalar), (unsigned)lanes);
    LLVMValueRef one = LLVMBuildInsertElement(kb->b, LLVMGetPoison(type), scalar, kb_i32(kb, 0), "");
    LLVMValueRef zeros = LLVMConstNull(LLVMVectorType(kb->i32, (unsigned)lanes));
    return LLVMBuildShuffleVector(kb->b, one, LLVMGetPoison(type), zeros, "");
}

LLVMValueRef
kb_lane_ids(const mc_kb *kb, int lanes)
{
    LLVMValueRef ids[64];
    assert(lanes <= 64);
    for (int i = 0; i < lanes; i++) ids[i] = kb_i32(kb, i);
    return lanes == 1 ? ids[0] : LLVMConstVector(ids, (unsigned)lanes);
}
