// base: what every kernel file begins with: types, the arguments of a kernel, conversions, vectors and reductions. The
// few primitives that are instructions of the GPU are in ptx.cuh; with MC_HOST the same kernels are C++ for the CPU
// (host.cuh), where tests run them thread by thread. No other header is needed, so NVRTC needs no toolkit.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};
struct f8e4m3 {
    u8 bits;
};
struct f8e5m2 {
    u8 bits;
};

/* moec_gpu_args of runtime/abi.h. */
struct mc_args {
    void *ptr[16];
    i64 i[24];
    f64 f[12];
    const i64 *past;
    i64 cache_cap;
    void *scratch;
};

struct alignas(64) mc_tensor_map {
    u64 words[16];
};
struct mc_maps {
    mc_tensor_map map[4];
};

#ifdef MC_HOST
#include "host.cuh"
#else
#include "ptx.cuh"
#endif

/* ---- arguments ----------------------------------------------------------------------------------------------- */

template <typename T>
MC_FN T *
arg(const mc_args &a, int n)
{
    return static_cast<T *>(a.ptr[n]);
}

/* Positions that are cached already. */
MC_FN i64
past(const mc_args &a)
{
    return a.past ? *a.past : 0;
}

/* ---- conversions --------------------------------------------------------------------------------------------- */

MC_FN u32
f32_bits(f32 x)
{
    return __float_as_uint(x);
}

MC_FN f32
bits_f32(u32 x)
{
    return __uint_as_float(x);
}

/* On the grid of an 8-bit format, to the nearest, ties to even; what is too great becomes GREATEST. */
template <int MANTISSA, int BIAS, u32 GREATEST, u32 NO_NUMBER>
MC_FN u8
f8_narrow(f32 x)
{
    u32 bits = f32_bits(x), sign = bits >> 24 & 0x80, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return u8(sign | NO_NUMBER);
    if (magnitude < u32(128 - BIAS) << 23) { /* below the smallest normal number */
        f32 steps = bits_f32(magnitude) * bits_f32(u32(127 + BIAS - 1 + MANTISSA) << 23);
        return u8(sign | u32(rintf(steps)));
    }
    u32 rounded = magnitude + ((1u << (22 - MANTISSA)) - 1) + (magnitude >> (23 - MANTISSA) & 1);
    u32 q = (rounded >> (23 - MANTISSA)) - (u32(127 - BIAS) << MANTISSA);
    return u8(sign | (q > GREATEST ? GREATEST : q));
}

MC_FN f32
to_float(f32 x)
{
    return x;
}

MC_FN f32
to_float(f64 x)
{
    return f32(x);
}

MC_FN f32
to_float(i32 x)
{
    return f32(x);
}

MC_FN f32
to_float(bf16 x)
{
    return bits_f32(u32(x.bits) << 16);
}

MC_FN f32
to_float(f16 x)
{
    return f16_widen(x.bits);
}

MC_FN f32
to_float(f8e5m2 x)
{
    return f16_widen(u16(x.bits << 8));
}

MC_FN f32
to_float(f8e4m3 x)
{
    u32 magnitude = x.bits & 0x7F, sign = u32(x.bits & 0x80) << 24;
    if (magnitude == 0x7F) return bits_f32(sign | 0x7FC00000);
    /* The fields moved into place are the value times 2^-120, exactly, subnormal ones too. */
    return bits_f32(f32_bits(bits_f32(magnitude << 20) * bits_f32(u32(127 + 120) << 23)) | sign);
}

/* To the nearest, ties to even; e4m3, which has no infinity, saturates. */
template <typename T> MC_FN T from_float(f32 x);

template <>
MC_FN f32
from_float<f32>(f32 x)
{
    return x;
}

template <>
MC_FN f64
from_float<f64>(f32 x)
{
    return x;
}

template <>
MC_FN bf16
from_float<bf16>(f32 x)
{
    return bf16{bf16_narrow(x)};
}

template <>
MC_FN f16
from_float<f16>(f32 x)
{
    return f16{f16_narrow(x)};
}

template <>
MC_FN f8e4m3
from_float<f8e4m3>(f32 x)
{
    return f8e4m3{f8_narrow<3, 7, 0x7E, 0x7F>(x)};
}

template <>
MC_FN f8e5m2
from_float<f8e5m2>(f32 x)
{
    return f8e5m2{f8_narrow<2, 15, 0x7C, 0x7E>(x)};
}

/* Two neighbours in one register: the operands of mma are made of such. */
template <typename T> MC_FN u32 pack2(f32 low, f32 high);

template <>
MC_FN u32
pack2<bf16>(f32 low, f32 high)
{
    return bf16_narrow2(low, high);
}

template <>
MC_FN u32
pack2<f16>(f32 low, f32 high)
{
    return f16_narrow2(low, high);
}

/* ---- vectors ------------------------------------------------------------------------------------------------- */

template <typename T, int N> struct alignas(sizeof(T) * N) vec {
    T v[N];
};

/* The address must be a multiple of N elements. */
template <int N, typename T>
MC_FN vec<T, N>
load_vec(const T *p)
{
    check_aligned(p, sizeof(T) * N);
    return *reinterpret_cast<const vec<T, N> *>(p);
}

template <typename T, int N>
MC_FN void
store_vec(T *p, const vec<T, N> &x)
{
    check_aligned(p, sizeof(T) * N);
    *reinterpret_cast<vec<T, N> *>(p) = x;
}

/* ---- reductions ---------------------------------------------------------------------------------------------- */

/* Always in the same order, and the same bits in every thread. */
template <typename T>
MC_FN T
warp_sum(T x)
{
    for (int mask = 16; mask; mask >>= 1) x = x + shfl_xor(x, mask);
    return x;
}

template <typename T>
MC_FN T
greater(T x, T y)
{
    return x > y ? x : y;
}

template <typename T>
MC_FN T
lesser(T x, T y)
{
    return x < y ? x : y;
}

/* As fmaxf: a NaN yields to a number. */
template <>
MC_FN f32
greater(f32 x, f32 y)
{
    return fmaxf(x, y);
}

template <>
MC_FN f32
lesser(f32 x, f32 y)
{
    return fminf(x, y);
}

template <typename T>
MC_FN T
warp_max(T x)
{
    for (int mask = 16; mask; mask >>= 1) x = greater(x, shfl_xor(x, mask));
    return x;
}

template <typename T>
MC_FN T
warp_min(T x)
{
    for (int mask = 16; mask; mask >>= 1) x = lesser(x, shfl_xor(x, mask));
    return x;
}

#ifndef MC_HOST /* one instruction for integers */
template <>
MC_FN i32
warp_max(i32 x)
{
    return __reduce_max_sync(0xFFFFFFFF, x);
}

template <>
MC_FN i32
warp_min(i32 x)
{
    return __reduce_min_sync(0xFFFFFFFF, x);
}
#endif

/* x of every warp in shared memory; the caller reads n of them and then calls block_sync. */
template <typename T>
MC_FN T *
warp_results(T x, int &n)
{
    MC_SHARED T results[32];
    n = int(blockDim.x) >> 5;
    if ((threadIdx.x & 31) == 0) results[threadIdx.x >> 5] = x;
    block_sync();
    return results;
}

/* Every thread of a block of one dimension, a multiple of 32 threads, gets the result. */
template <typename T>
MC_FN T
block_sum(T x)
{
    int n;
    T *results = warp_results(warp_sum(x), n);
    int lane = int(threadIdx.x & 31);
    T total = warp_sum(lane < n ? results[lane] : T(0));
    block_sync();
    return total;
}

template <typename T>
MC_FN T
block_max(T x)
{
    int n;
    T *results = warp_results(warp_max(x), n);
    T total = results[0];
    for (int i = 1; i < n; i++) total = greater(total, results[i]);
    block_sync();
    return total;
}
