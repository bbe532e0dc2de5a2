// hopper_ptx: the instructions of sm_90a that hopper.cuh is made of. Addresses of shared memory are 32-bit numbers
// (shared_address), as the instructions take them. tests/gpu/hopper_host.cuh has the same functions for a CPU.
#pragma once
#include "hopper_layout.cuh"

/* ---- barriers of shared memory (mbarrier) ---------------------------------------------------------------------------
 * A barrier counts arrivals and bytes; when the count of its phase is complete, the next phase begins. One waits for
 * the parity of a phase: a wait for parity p returns once the phase that runs has parity 1 - p. A fresh barrier is in
 * phase 0, so that a wait for parity 1 returns at once. */

MC_FN void
barrier_init(u32 barrier, u32 arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/* After barrier_init, before block_sync: the copy engine must see the barriers too. */
MC_FN void
barrier_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* What the thread has done before is seen by whoever waits for the phase. */
MC_FN void
barrier_arrive(u32 barrier)
{
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives, and the phase waits for so many bytes of the copy engine as well. */
MC_FN void
barrier_arrive_expect(u32 barrier, u32 bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

/* An arrival that happens once all copies (copy16) of this thread so far are done. `noinc`: it is one of the arrivals
 * that barrier_init counted. */
MC_FN void
barrier_arrive_copies(u32 barrier)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

/* try_wait sleeps for a while by itself, so the loop is not a hot one. */
MC_FN void
barrier_wait(u32 barrier, u32 parity)
{
    u32 done;
    do {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!done);
}

/* ---- copies --------------------------------------------------------------------------------------------------------
 */

/* 16 bytes; zeros when not valid (nothing is read then, but the address must be one). */
MC_FN void
copy16(u32 shared, const void *global, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}

MC_FN void
copies_wait()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* The box of the map at coordinates x (innermost), y, z to shared memory; what lies outside of the tensor becomes
 * zeros, and all bytes of the box count at the barrier. */
MC_FN void
tensor_load(u32 shared, const mc_tensor_map &map, i32 x, i32 y, u32 barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
                 "%4}], [%2];" ::"r"(shared),
                 "l"(&map), "r"(barrier), "r"(x), "r"(y)
                 : "memory");
}

MC_FN void
tensor_load(u32 shared, const mc_tensor_map &map, i32 x, i32 y, i32 z, u32 barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
                 "%4, %5}], [%2];" ::"r"(shared),
                 "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

MC_FN void
tensor_prefetch(const mc_tensor_map &map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/* What was written to shared memory by ordinary means (copy16 too) and seen by this thread (it waited at a barrier) is
 * seen by the wgmma that it starts afterwards: they read through another path (the async proxy). */
MC_FN void
fence_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- registers -----------------------------------------------------------------------------------------------------
 */

/* All threads of a warpgroup give registers back, or wait until there are that many for each of them. */
template <int N>
MC_FN void
registers_fewer()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
MC_FN void
registers_more()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

/* ---- products of a warpgroup (wgmma) -------------------------------------------------------------------------------
 * Started one after the other, finished in that order; accumulators must not be touched in between. */

/* Before the first of a batch: registers written by the threads are in place. */
MC_FN void
wgmma_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

MC_FN void
wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N batches are under way. */
template <int N>
MC_FN void
wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* d (64 x N) = a b' + (accumulate ? d : 0) for 16 k: a has 64 rows, b has N rows, both K major in shared memory. The
 * last numbers of the instruction: neither operand negated (1, 1), neither transposed (0, 0). */
template <typename T, int N> struct wgmma_of;

/* clang-format off */
#define MC_NAMES_0 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MC_NAMES_32 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MC_NAMES_64 \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define MC_NAMES_96 \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define MC_HOLD_8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define MC_HOLD_32(i) MC_HOLD_8(i), MC_HOLD_8(i + 8), MC_HOLD_8(i + 16), MC_HOLD_8(i + 24)
#define MC_HOLD_64(i) MC_HOLD_32(i), MC_HOLD_32(i + 32)
#define MC_HOLD_128(i) MC_HOLD_64(i), MC_HOLD_64(i + 64)

/* COUNT registers of d are operands 0 to COUNT - 1; then come A, B (descriptors) and S (accumulate). */
#define MC_WGMMA(T, TEXT, N, COUNT, NAMES, A, B, S) \
    template <> struct wgmma_of<T, N> { \
        MC_FN static void run(f32 (&d)[COUNT], u64 a, u64 b, bool accumulate) { \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " S ", 0;\n" \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TEXT "." TEXT " {" NAMES "}, " A ", " B ", p, 1, 1, 0, 0;\n}" \
                         : MC_HOLD_##COUNT(0) : "l"(a), "l"(b), "r"(i32(accumulate))); \
        } \
    };
MC_WGMMA(bf16, "bf16", 256, 128, MC_NAMES_0 ", " MC_NAMES_32 ", " MC_NAMES_64 ", " MC_NAMES_96, "%128", "%129", "%130")
MC_WGMMA(bf16, "bf16", 128, 64, MC_NAMES_0 ", " MC_NAMES_32, "%64", "%65", "%66")
MC_WGMMA(f16, "f16", 256, 128, MC_NAMES_0 ", " MC_NAMES_32 ", " MC_NAMES_64 ", " MC_NAMES_96, "%128", "%129", "%130")
MC_WGMMA(f16, "f16", 128, 64, MC_NAMES_0 ", " MC_NAMES_32, "%64", "%65", "%66")
/* clang-format on */

#undef MC_WGMMA
#undef MC_HOLD_8
#undef MC_HOLD_32
#undef MC_HOLD_64
#undef MC_HOLD_128
#undef MC_NAMES_0
#undef MC_NAMES_32
#undef MC_NAMES_64
#undef MC_NAMES_96

template <typename T, int N>
MC_FN void
wgmma(f32 (&d)[N / 2], u64 a, u64 b, bool accumulate)
{
    wgmma_of<T, N>::run(d, a, b, accumulate);
}
