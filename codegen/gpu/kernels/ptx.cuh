// ptx: the primitives of base.cuh as instructions of the GPU. NVRTC knows the intrinsics that have names; the others
// are inline PTX. sm_80 is the least.
#pragma once

#define MC_FN __device__ inline
#define MC_SHARED __shared__ __align__(16)
#define MC_CONSTANT __constant__
#define MC_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define MC_ARCH (__CUDA_ARCH__ / 10)
#ifndef INFINITY
#define INFINITY __int_as_float(0x7F800000)
#define NAN __int_as_float(0x7FC00000)
#endif

MC_FN void
check_aligned(const void *, unsigned long long)
{
}

/* ---- arithmetic ---------------------------------------------------------------------------------------------- */

MC_FN f32
mul_rn(f32 x, f32 y)
{
    return __fmul_rn(x, y);
}

MC_FN f32
add_rn(f32 x, f32 y)
{
    return __fadd_rn(x, y);
}

MC_FN f64
mul_rn(f64 x, f64 y)
{
    return __dmul_rn(x, y);
}

MC_FN f64
add_rn(f64 x, f64 y)
{
    return __dadd_rn(x, y);
}

MC_FN f32
f16_widen(u16 bits)
{
    f32 x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

MC_FN u16
f16_narrow(f32 x)
{
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

MC_FN u16
bf16_narrow(f32 x)
{
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

/* What mma_tf32 reads: 10 bits of mantissa, ties away from zero. */
MC_FN u32
to_tf32(f32 x)
{
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

/* Two numbers in one register, low in the lower half. */
MC_FN u32
bf16_narrow2(f32 low, f32 high)
{
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

MC_FN u32
f16_narrow2(f32 low, f32 high)
{
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

/* 2^x to about 2^-22, for weights that are rounded to 16 bits anyway. */
MC_FN f32
exp2_near(f32 x)
{
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- threads together ---------------------------------------------------------------------------------------- */

MC_FN void
block_sync()
{
    __syncthreads();
}

MC_FN void
warp_sync()
{
    __syncwarp();
}

/* All 32 threads of the warp take part. */
template <typename T>
MC_FN T
shfl(T x, int lane)
{
    return __shfl_sync(0xFFFFFFFF, x, lane);
}

template <typename T>
MC_FN T
shfl_xor(T x, int mask)
{
    return __shfl_xor_sync(0xFFFFFFFF, x, mask);
}

/* From the lane that is d lower (higher); the lowest (highest) d lanes keep theirs. */
template <typename T>
MC_FN T
shfl_up(T x, int d)
{
    return __shfl_up_sync(0xFFFFFFFF, x, d);
}

template <typename T>
MC_FN T
shfl_down(T x, int d)
{
    return __shfl_down_sync(0xFFFFFFFF, x, d);
}

MC_FN u32
ballot(bool p)
{
    return __ballot_sync(0xFFFFFFFF, p);
}

MC_FN bool
any(bool p)
{
    return __any_sync(0xFFFFFFFF, p);
}

MC_FN i32
atomic_add(i32 *at, i32 x)
{
    return atomicAdd(at, x);
}

/* ---- copies that run beside the threads ---------------------------------------------------------------------- */

MC_FN u32
shared_address(const void *shared)
{
    return u32(__cvta_generic_to_shared(shared));
}

/* 16 bytes, both addresses multiples of 16; zeros when not valid (the global address is then not read). */
MC_FN void
cp_async16(void *shared, const void *global, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

MC_FN void
cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits for this thread's copies, but for those of the N latest groups. */
template <int N>
MC_FN void
cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- tensor cores -------------------------------------------------------------------------------------------- */

/* Four 8 x 8 matrices of 16-bit elements; lanes 8 i to 8 i + 7 give the addresses of the rows of matrix i. */
MC_FN void
ldmatrix_x4(u32 (&r)[4], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

MC_FN void
ldmatrix_x4_trans(u32 (&r)[4], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

/* d += a b, with a of 16 x 16 (tf32: 16 x 8), b of 16 x 8 (8 x 8), d of 16 x 8. */
MC_FN void
mma_bf16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2])
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

MC_FN void
mma_f16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2])
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

MC_FN void
mma_tf32(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2])
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
