/* Instructions of the kernel builder: memory, arithmetic and conversions. Nothing here is marked "fast": every
 * operation rounds as IEEE 754 says, which is what makes results the same on every target. */
#include "codegen/cpu/kb.h"

#include <assert.h>
#include <string.h>

LLVMValueRef
kb_intrinsic(mc_kb *kb, const char *name, const LLVMTypeRef *types, int n_types, const LLVMValueRef *args, int n_args)
{
    LLVMTypeRef overloads[4];
    LLVMValueRef copies[8];
    assert(n_types <= 4 && n_args <= 8);
    for (int i = 0; i < n_types; i++) overloads[i] = types[i];
    for (int i = 0; i < n_args; i++) copies[i] = args[i];
    unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
    assert(id && "an intrinsic of this name exists");
    LLVMValueRef fn = LLVMGetIntrinsicDeclaration(kb->module, id, overloads, (size_t)n_types);
    LLVMTypeRef type = LLVMIntrinsicGetType(kb->ctx, id, overloads, (size_t)n_types);
    return LLVMBuildCall2(kb->b, type, fn, copies, (unsigned)n_args, "");
}

static LLVMValueRef
unary(mc_kb *kb, const char *name, LLVMValueRef x)
{
    LLVMTypeRef type = LLVMTypeOf(x);
    return kb_intrinsic(kb, name, &type, 1, &x, 1);
}

/* ---- memory --------------------------------------------------------------------------------------------------- */

LLVMValueRef
kb_gep(mc_kb *kb, LLVMValueRef p, LLVMValueRef n_bytes)
{
    return LLVMBuildGEP2(kb->b, kb->i8, p, &n_bytes, 1, "");
}

LLVMValueRef
kb_gepi(mc_kb *kb, LLVMValueRef p, int64_t n_bytes)
{
    return n_bytes ? kb_gep(kb, p, kb_i64(kb, n_bytes)) : p;
}

LLVMValueRef
kb_elem(mc_kb *kb, LLVMValueRef p, LLVMValueRef index, int64_t element_bytes)
{
    return kb_gep(kb, p, kb_mul(kb, index, kb_i64(kb, element_bytes)));
}

LLVMValueRef
kb_load(mc_kb *kb, LLVMTypeRef type, LLVMValueRef p, unsigned align)
{
    LLVMValueRef v = LLVMBuildLoad2(kb->b, type, p, "");
    LLVMSetAlignment(v, align);
    return v;
}

void
kb_store(mc_kb *kb, LLVMValueRef v, LLVMValueRef p, unsigned align)
{
    LLVMSetAlignment(LLVMBuildStore(kb->b, v, p), align);
}

/* LLVM 22 moved the alignment of masked accesses from an operand to an attribute of the pointer. */
static void
set_masked_align(mc_kb *kb, LLVMValueRef call, LLVMAttributeIndex index, unsigned align)
{
#if MOEC_LLVM_MAJOR >= 22
    unsigned kind = LLVMGetEnumAttributeKindForName("align", 5);
    LLVMAddCallSiteAttribute(call, index, LLVMCreateEnumAttribute(kb->ctx, kind, align));
#else
    (void)kb, (void)call, (void)index, (void)align;
#endif
}

LLVMValueRef
kb_load_masked(mc_kb *kb, LLVMTypeRef type, LLVMValueRef p, unsigned align, LLVMValueRef mask)
{
    if (!mask) return kb_load(kb, type, p, align);
    LLVMTypeRef types[2] = {type, kb->ptr};
#if MOEC_LLVM_MAJOR >= 22
    LLVMValueRef args[3] = {p, mask, LLVMConstNull(type)};
    LLVMValueRef v = kb_intrinsic(kb, "llvm.masked.load", types, 2, args, 3);
#else
    LLVMValueRef args[4] = {p, kb_i32(kb, (int32_t)align), mask, LLVMConstNull(type)};
    LLVMValueRef v = kb_intrinsic(kb, "llvm.masked.load", types, 2, args, 4);
#endif
    set_masked_align(kb, v, 1, align);
    return v;
}

void
kb_store_masked(mc_kb *kb, LLVMValueRef v, LLVMValueRef p, unsigned align, LLVMValueRef mask)
{
    if (!mask) {
        kb_store(kb, v, p, align);
        return;
    }
    LLVMTypeRef types[2] = {LLVMTypeOf(v), kb->ptr};
#if MOEC_LLVM_MAJOR >= 22
    LLVMValueRef args[3] = {v, p, mask};
    LLVMValueRef call = kb_intrinsic(kb, "llvm.masked.store", types, 2, args, 3);
#else
    LLVMValueRef args[4] = {v, p, kb_i32(kb, (int32_t)align), mask};
    LLVMValueRef call = kb_intrinsic(kb, "llvm.masked.store", types, 2, args, 4);
#endif
    set_masked_align(kb, call, 2, align);
}

static LLVMTypeRef
storage_type(const mc_kb *kb, moec_dtype dtype, int lanes)
{
    size_t n_bytes = moec_dtype_bytes(dtype);
    assert(dtype == MOEC_F32 || n_bytes <= 2);
    return kb_vector(dtype == MOEC_F32 ? kb->f32 : n_bytes == 2 ? kb->i16 : kb->i8, lanes);
}

LLVMValueRef
kb_load_f32(mc_kb *kb, moec_dtype dtype, LLVMValueRef p, int lanes, LLVMValueRef mask)
{
    unsigned align = (unsigned)moec_dtype_bytes(dtype);
    return kb_widen(kb, dtype, kb_load_masked(kb, storage_type(kb, dtype, lanes), p, align, mask));
}

void
kb_store_f32(mc_kb *kb, moec_dtype dtype, LLVMValueRef v, LLVMValueRef p, LLVMValueRef mask)
{
    kb_store_masked(kb, kb_narrow(kb, dtype, v), p, (unsigned)moec_dtype_bytes(dtype), mask);
}

/* An 8-bit float of 4 exponent bits, shifted into the place of an f16, is the same number times 2^-8, subnormals
 * included; the code with all bits set is the format's only NaN. */
static LLVMValueRef
widen_e4m3(mc_kb *kb, LLVMValueRef raw)
{
    LLVMTypeRef wide = kb_like(kb->i16, raw), f = kb_like(kb->f32, raw);
    LLVMValueRef s = LLVMBuildSExt(kb->b, raw, wide, "");
    LLVMValueRef half = kb_and(kb, kb_shl(kb, s, kb_iconst(wide, 7)), kb_iconst(wide, 0xBF80));
    LLVMValueRef v = LLVMBuildFPExt(kb->b, kb_bits(kb, half, kb_like(kb->f16, raw)), f, "");
    v = kb_fmul(kb, v, kb_const(f, 256.0));
    LLVMValueRef magnitude = kb_and(kb, raw, kb_iconst(LLVMTypeOf(raw), 0x7F));
    LLVMValueRef is_nan = kb_icmp(kb, LLVMIntEQ, magnitude, kb_iconst(LLVMTypeOf(raw), 0x7F));
    return kb_select(kb, is_nan, kb_bits(kb, kb_iconst(kb_like(kb->i32, raw), 0x7FC00000), f), v);
}

LLVMValueRef
kb_widen(mc_kb *kb, moec_dtype dtype, LLVMValueRef raw)
{
    LLVMTypeRef f = kb_like(kb->f32, raw), i = kb_like(kb->i32, raw), h = kb_like(kb->f16, raw);
    if (dtype == MOEC_BF16) {
        LLVMValueRef z = LLVMBuildZExt(kb->b, raw, i, "");
        return kb_bits(kb, kb_shl(kb, z, kb_iconst(i, 16)), f);
    }
    if (dtype == MOEC_F16) return LLVMBuildFPExt(kb->b, kb_bits(kb, raw, h), f, "");
    if (dtype == MOEC_F8E4M3) return widen_e4m3(kb, raw);
    if (dtype == MOEC_F8E5M2) {
        LLVMTypeRef wide = kb_like(kb->i16, raw);
        LLVMValueRef z = kb_shl(kb, LLVMBuildZExt(kb->b, raw, wide, ""), kb_iconst(wide, 8));
        return LLVMBuildFPExt(kb->b, kb_bits(kb, z, h), f, "");
    }
    assert(dtype == MOEC_F32);
    return raw;
}

/* Nearest, ties to even; a NaN keeps its sign and top payload bits and becomes quiet. */
static LLVMValueRef
narrow_bf16(mc_kb *kb, LLVMValueRef v)
{
    LLVMTypeRef i = kb_like(kb->i32, v);
    LLVMValueRef u = kb_bits(kb, v, i), top = kb_lshr(kb, u, kb_iconst(i, 16));
    LLVMValueRef odd = kb_and(kb, top, kb_iconst(i, 1));
    LLVMValueRef rounded = kb_lshr(kb, kb_add(kb, u, kb_add(kb, odd, kb_iconst(i, 0x7FFF))), kb_iconst(i, 16));
    LLVMValueRef quiet = kb_or(kb, top, kb_iconst(i, 0x40));
    LLVMValueRef is_nan = kb_fcmp(kb, LLVMRealUNO, v, v);
    return LLVMBuildTrunc(kb->b, kb_select(kb, is_nan, quiet, rounded), kb_like(kb->i16, v), "");
}

LLVMValueRef
kb_narrow(mc_kb *kb, moec_dtype dtype, LLVMValueRef v)
{
    if (dtype == MOEC_BF16) return narrow_bf16(kb, v);
    if (dtype == MOEC_F16) return kb_bits(kb, LLVMBuildFPTrunc(kb->b, v, kb_like(kb->f16, v), ""), kb_like(kb->i16, v));
    assert(dtype == MOEC_F32);
    return v;
}

void
kb_prefetch(mc_kb *kb, LLVMValueRef p)
{
    LLVMValueRef args[4] = {p, kb_i32(kb, 0), kb_i32(kb, 3), kb_i32(kb, 1)};
    kb_intrinsic(kb, "llvm.prefetch", &kb->ptr, 1, args, 4);
}

/* ---- arithmetic ----------------------------------------------------------------------------------------------- */

LLVMValueRef
kb_icmp(mc_kb *kb, LLVMIntPredicate op, LLVMValueRef x, LLVMValueRef y)
{
    return LLVMBuildICmp(kb->b, op, x, y, "");
}

LLVMValueRef
kb_fcmp(mc_kb *kb, LLVMRealPredicate op, LLVMValueRef x, LLVMValueRef y)
{
    return LLVMBuildFCmp(kb->b, op, x, y, "");
}

LLVMValueRef
kb_select(mc_kb *kb, LLVMValueRef condition, LLVMValueRef yes, LLVMValueRef no)
{
    return LLVMBuildSelect(kb->b, condition, yes, no, "");
}

LLVMValueRef
kb_min(mc_kb *kb, LLVMValueRef x, LLVMValueRef y)
{
    return kb_select(kb, kb_icmp(kb, LLVMIntSLT, x, y), x, y);
}

LLVMValueRef
kb_max(mc_kb *kb, LLVMValueRef x, LLVMValueRef y)
{
    return kb_select(kb, kb_icmp(kb, LLVMIntSGT, x, y), x, y);
}

LLVMValueRef
kb_fmin(mc_kb *kb, LLVMValueRef x, LLVMValueRef y)
{
    return kb_select(kb, kb_fcmp(kb, LLVMRealOLT, x, y), x, y);
}

LLVMValueRef
kb_fmax(mc_kb *kb, LLVMValueRef x, LLVMValueRef y)
{
    return kb_select(kb, kb_fcmp(kb, LLVMRealOGT, x, y), x, y);
}

LLVMValueRef
kb_fma(mc_kb *kb, LLVMValueRef x, LLVMValueRef y, LLVMValueRef z)
{
    LLVMTypeRef type = LLVMTypeOf(x);
    LLVMValueRef args[3] = {x, y, z};
    return kb_intrinsic(kb, "llvm.fma", &type, 1, args, 3);
}

LLVMValueRef
kb_fneg(mc_kb *kb, LLVMValueRef x)
{
    return LLVMBuildFNeg(kb->b, x, "");
}

LLVMValueRef
kb_fabs(mc_kb *kb, LLVMValueRef x)
{
    return unary(kb, "llvm.fabs", x);
}

LLVMValueRef
kb_copysign(mc_kb *kb, LLVMValueRef magnitude, LLVMValueRef sign)
{
    LLVMTypeRef type = LLVMTypeOf(magnitude);
    LLVMValueRef args[2] = {magnitude, sign};
    return kb_intrinsic(kb, "llvm.copysign", &type, 1, args, 2);
}

LLVMValueRef
kb_sqrt(mc_kb *kb, LLVMValueRef x)
{
    return unary(kb, "llvm.sqrt", x);
}

LLVMValueRef
kb_rint(mc_kb *kb, LLVMValueRef x)
{
    return unary(kb, "llvm.rint", x);
}

LLVMValueRef
kb_floor(mc_kb *kb, LLVMValueRef x)
{
    return unary(kb, "llvm.floor", x);
}

LLVMValueRef
kb_bits(mc_kb *kb, LLVMValueRef v, LLVMTypeRef type)
{
    return LLVMBuildBitCast(kb->b, v, type, "");
}

static bool
is_float(LLVMTypeRef t)
{
    LLVMTypeKind kind = LLVMGetTypeKind(t);
    if (kind == LLVMVectorTypeKind) kind = LLVMGetTypeKind(LLVMGetElementType(t));
    return kind == LLVMFloatTypeKind || kind == LLVMDoubleTypeKind || kind == LLVMHalfTypeKind;
}

LLVMValueRef
kb_convert(mc_kb *kb, LLVMValueRef v, LLVMTypeRef type)
{
    bool from = is_float(LLVMTypeOf(v)), to = is_float(type);
    if (from && to) return LLVMBuildFPCast(kb->b, v, type, "");
    if (from) return LLVMBuildFPToSI(kb->b, v, type, "");
    if (to) return LLVMBuildSIToFP(kb->b, v, type, "");
    return LLVMBuildIntCast2(kb->b, v, type, 1, "");
}

LLVMValueRef
kb_zext(mc_kb *kb, LLVMValueRef v, LLVMTypeRef type)
{
    return LLVMBuildIntCast2(kb->b, v, type, 0, "");
}

LLVMValueRef
kb_extract(mc_kb *kb, LLVMValueRef vector, int lane)
{
    return LLVMBuildExtractElement(kb->b, vector, kb_i32(kb, lane), "");
}

LLVMValueRef
kb_shuffle(mc_kb *kb, LLVMValueRef x, LLVMValueRef y, const int *lanes, int n)
{
    LLVMValueRef ids[64];
    assert(n <= 64);
    for (int i = 0; i < n; i++) ids[i] = kb_i32(kb, lanes[i]);
    return LLVMBuildShuffleVector(kb->b, x, y, LLVMConstVector(ids, (unsigned)n), "");
}

/* ---- reductions ----------------------------------------------------------------------------------------------- */

typedef LLVMValueRef combine_fn(mc_kb *kb, LLVMValueRef x, LLVMValueRef y);

static LLVMValueRef
reduce(mc_kb *kb, const LLVMValueRef *v, int n, combine_fn *combine)
{
    LLVMValueRef a[KB_MAX_CARRIED];
    assert(n > 0 && n <= KB_MAX_CARRIED && (n & (n - 1)) == 0);
    for (int i = 0; i < n; i++) a[i] = v[i];
    for (int half = n / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] = combine(kb, a[i], a[i + half]);
    for (int half = kb_lanes(a[0]) / 2; half; half /= 2) {
        int low[64], high[64];
        for (int i = 0; i < half; i++) low[i] = i, high[i] = i + half;
        a[0] = combine(kb, kb_shuffle(kb, a[0], a[0], low, half), kb_shuffle(kb, a[0], a[0], high, half));
    }
    return kb_lanes(a[0]) == 1 && LLVMGetTypeKind(LLVMTypeOf(a[0])) == LLVMVectorTypeKind ? kb_extract(kb, a[0], 0)
                                                                                          : a[0];
}

static LLVMValueRef
combine_add(mc_kb *kb, LLVMValueRef x, LLVMValueRef y)
{
    return kb_fadd(kb, x, y);
}

static LLVMValueRef
combine_max(mc_kb *kb, LLVMValueRef x, LLVMValueRef y)
{
    return kb_fmax(kb, x, y);
}

LLVMValueRef
kb_reduce_add(mc_kb *kb, const LLVMValueRef *v, int n)
{
    return reduce(kb, v, n, combine_add);
}

LLVMValueRef
kb_reduce_max(mc_kb *kb, const LLVMValueRef *v, int n)
{
    return reduce(kb, v, n, combine_max);
}
