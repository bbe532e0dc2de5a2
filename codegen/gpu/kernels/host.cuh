// host: the primitives of base.cuh for a CPU, and the names of CUDA that kernels use. Every thread of a block is a
// fiber of one thread of the CPU; where threads wait for each other, the program that runs the kernel goes on with
// another one (tests/gpu/README.md). All variables of shared memory are `static`: one block runs at a time.
#pragma once

#include "host_state.cuh"

#define MC_FN inline
#define MC_SHARED static __attribute__((aligned(16)))
#define MC_CONSTANT static const
#define MC_DYNAMIC_SHARED(name) unsigned char *const name = mc_host.dynamic_shared
#define __global__ __attribute__((visibility("default")))
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __grid_constant__
#define __launch_bounds__(...)
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

/* Set by the program that runs the kernel. In a section of its own, since .bss is the shared memory. */
__attribute__((section("mc_host_data"))) mc_host_state mc_host = {};

extern "C" {
extern unsigned char __bss_start[] __attribute__((visibility("hidden")));
extern unsigned char _end[] __attribute__((visibility("hidden")));

__attribute__((visibility("default"))) mc_host_state *
mc_host_get()
{
    mc_host.shared = __bss_start;
    mc_host.shared_end = _end;
    return &mc_host;
}
}

#define threadIdx (mc_host.thread)
#define blockIdx (mc_host.block)
#define blockDim (mc_host.block_dim)
#define gridDim (mc_host.grid_dim)

/* ---- names of CUDA ------------------------------------------------------------------------------------------- */

extern "C" {
f32 expf(f32), exp2f(f32), expm1f(f32), logf(f32), log2f(f32), log1pf(f32), erff(f32), erfcf(f32), tanhf(f32);
f32 sinf(f32), cosf(f32), powf(f32, f32), sqrtf(f32), fabsf(f32), floorf(f32), ceilf(f32), rintf(f32), roundf(f32);
f32 truncf(f32), fmaf(f32, f32, f32), fmaxf(f32, f32), fminf(f32, f32), fmodf(f32, f32), ldexpf(f32, int);
f32 nearbyintf(f32), copysignf(f32, f32);
void sincosf(f32, f32 *, f32 *);
f64 exp(f64), log(f64), sqrt(f64), fabs(f64), floor(f64), pow(f64, f64), sin(f64), cos(f64), fma(f64, f64, f64);
f64 tanh(f64), log1p(f64), rint(f64), ceil(f64), fmax(f64, f64), fmin(f64, f64);
void *memcpy(void *, const void *, __SIZE_TYPE__);
void *memset(void *, int, __SIZE_TYPE__);
}

MC_FN f32
rsqrtf(f32 x)
{
    return 1 / sqrtf(x);
}

MC_FN bool
isnan(f32 x)
{
    return __builtin_isnan(x);
}

MC_FN bool
isinf(f32 x)
{
    return __builtin_isinf(x);
}

MC_FN bool
isfinite(f32 x)
{
    return __builtin_isfinite(x);
}

#define MC_HOST_MIN_MAX(T)                                                                                             \
    MC_FN T min(T x, T y)                                                                                              \
    {                                                                                                                  \
        return y < x ? y : x;                                                                                          \
    }                                                                                                                  \
    MC_FN T max(T x, T y)                                                                                              \
    {                                                                                                                  \
        return x < y ? y : x;                                                                                          \
    }
MC_HOST_MIN_MAX(i32)
MC_HOST_MIN_MAX(u32)
MC_HOST_MIN_MAX(i64)
MC_HOST_MIN_MAX(u64)
#undef MC_HOST_MIN_MAX

MC_FN f32
min(f32 x, f32 y)
{
    return fminf(x, y);
}

MC_FN f32
max(f32 x, f32 y)
{
    return fmaxf(x, y);
}

template <typename To, typename From>
MC_FN To
mc_host_bits(From x)
{
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To y;
    __builtin_memcpy(&y, &x, sizeof y);
    return y;
}

MC_FN u32
__float_as_uint(f32 x)
{
    return mc_host_bits<u32>(x);
}

MC_FN f32
__uint_as_float(u32 x)
{
    return mc_host_bits<f32>(x);
}

MC_FN i32
__float_as_int(f32 x)
{
    return mc_host_bits<i32>(x);
}

MC_FN f32
__int_as_float(i32 x)
{
    return mc_host_bits<f32>(x);
}

MC_FN int
__popc(u32 x)
{
    return __builtin_popcount(x);
}

MC_FN int
__ffs(i32 x)
{
    return __builtin_ffs(x);
}

MC_FN int
__clz(i32 x)
{
    return x ? __builtin_clz(u32(x)) : 32;
}

template <typename T>
MC_FN T
__ldg(const T *p)
{
    return *p;
}

/* ---- arithmetic ---------------------------------------------------------------------------------------------- */

MC_FN void
check_aligned(const void *p, unsigned long long n_bytes)
{
    if (reinterpret_cast<unsigned long long>(p) % n_bytes) mc_host.fail("a vector at an address that is not aligned");
}

MC_FN f32
mul_rn(f32 x, f32 y)
{
    return x * y;
}

MC_FN f32
add_rn(f32 x, f32 y)
{
    return x + y;
}

MC_FN f64
mul_rn(f64 x, f64 y)
{
    return x * y;
}

MC_FN f64
add_rn(f64 x, f64 y)
{
    return x + y;
}

/* The value of a magnitude's fields is 2^-112 of its own once they stand where those of f32 stand. */
MC_FN f32
f16_widen(u16 bits)
{
    u32 sign = u32(bits & 0x8000) << 16, magnitude = bits & 0x7FFF;
    if (magnitude >= 0x7C00) return __uint_as_float(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    f32 x = __uint_as_float(magnitude << 13) * __uint_as_float(u32(127 + 112) << 23);
    return __uint_as_float(__float_as_uint(x) | sign);
}

MC_FN u16
f16_narrow(f32 x)
{
    u32 bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return u16(sign | 0x7FFF);
    if (magnitude < 113u << 23)
        return u16(sign | u32(rintf(__uint_as_float(magnitude) * __uint_as_float(u32(127 + 24) << 23))));
    u32 q = ((magnitude + 0xFFF + (magnitude >> 13 & 1)) >> 13) - (112u << 10);
    return u16(sign | (q > 0x7C00 ? 0x7C00 : q));
}

MC_FN u16
bf16_narrow(f32 x)
{
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
    return u16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

MC_FN u32
to_tf32(f32 x)
{
    u32 bits = __float_as_uint(x);
    return (bits & 0x7F800000) == 0x7F800000 ? bits : (bits + 0x1000) & ~0x1FFFu;
}

MC_FN u32
bf16_narrow2(f32 low, f32 high)
{
    return u32(bf16_narrow(low)) | u32(bf16_narrow(high)) << 16;
}

MC_FN u32
f16_narrow2(f32 low, f32 high)
{
    return u32(f16_narrow(low)) | u32(f16_narrow(high)) << 16;
}

MC_FN f32
exp2_near(f32 x)
{
    return exp2f(x);
}

/* ---- threads together ---------------------------------------------------------------------------------------- */

MC_FN void
block_sync()
{
    mc_host.together(MC_HOST_SYNC_BLOCK, nullptr);
}

MC_FN void
warp_sync()
{
    mc_host.together(MC_HOST_SYNC_WARP, nullptr);
}

template <typename T>
MC_FN T
mc_host_shfl(mc_host_kind kind, T x, int from)
{
    T result;
    mc_host_shuffle mine = {&result, &x, int(sizeof x), from};
    mc_host.together(kind, &mine);
    return result;
}

template <typename T>
MC_FN T
shfl(T x, int lane)
{
    return mc_host_shfl(MC_HOST_SHFL, x, lane & 31);
}

template <typename T>
MC_FN T
shfl_xor(T x, int mask)
{
    return mc_host_shfl(MC_HOST_SHFL_XOR, x, mc_host.lane ^ (mask & 31));
}

template <typename T>
MC_FN T
shfl_up(T x, int d)
{
    return mc_host_shfl(MC_HOST_SHFL_UP, x, mc_host.lane < d ? mc_host.lane : mc_host.lane - d);
}

template <typename T>
MC_FN T
shfl_down(T x, int d)
{
    return mc_host_shfl(MC_HOST_SHFL_DOWN, x, mc_host.lane + d > 31 ? mc_host.lane : mc_host.lane + d);
}

MC_FN u32
ballot(bool p)
{
    mc_host_vote mine = {0, p};
    mc_host.together(MC_HOST_BALLOT, &mine);
    return mine.result;
}

MC_FN bool
any(bool p)
{
    return ballot(p) != 0;
}

MC_FN i32
atomic_add(i32 *at, i32 x)
{
    i32 old = *at;
    *at += x;
    return old;
}

/* ---- copies that run beside the threads ---------------------------------------------------------------------- */

MC_FN void
cp_async16(void *shared, const void *global, bool valid)
{
    check_aligned(shared, 16);
    if (valid) check_aligned(global, 16);
    mc_host.copy(shared, valid ? global : nullptr);
}

MC_FN void
cp_async_commit()
{
    mc_host.commit();
}

template <int N>
MC_FN void
cp_async_wait()
{
    mc_host.wait(N);
}

/* ---- tensor cores -------------------------------------------------------------------------------------------- */

MC_FN void
ldmatrix_x4(u32 (&r)[4], const void *shared_row)
{
    check_aligned(shared_row, 16);
    mc_host_matrices mine = {r, shared_row};
    mc_host.together(MC_HOST_LDMATRIX, &mine);
}

MC_FN void
ldmatrix_x4_trans(u32 (&r)[4], const void *shared_row)
{
    check_aligned(shared_row, 16);
    mc_host_matrices mine = {r, shared_row};
    mc_host.together(MC_HOST_LDMATRIX_TRANS, &mine);
}

MC_FN void
mma_bf16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2])
{
    struct mc_host_mma mine = {d, a, b};
    mc_host.together(MC_HOST_MMA_BF16, &mine);
}

MC_FN void
mma_f16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2])
{
    struct mc_host_mma mine = {d, a, b};
    mc_host.together(MC_HOST_MMA_F16, &mine);
}

MC_FN void
mma_tf32(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2])
{
    struct mc_host_mma mine = {d, a, b};
    mc_host.together(MC_HOST_MMA_TF32, &mine);
}
