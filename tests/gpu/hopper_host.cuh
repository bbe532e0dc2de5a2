// hopper_host: the functions of codegen/gpu/kernels/hopper_ptx.cuh as calls of hopper_machine.c.
#pragma once
#include "codegen/gpu/kernels/hopper_layout.cuh"
#include "hopper_machine.h"

/* clang-format off */
MC_FN f32 __expf(f32 x) { return expf(x); }
MC_FN f32 __fdividef(f32 x, f32 y) { return x / y; }
MC_FN u32 shared_address(const void *shared) { return hopper_machine_address(shared); }
MC_FN void barrier_init(u32 barrier, u32 arrivals) { hopper_machine_barrier_init(barrier, arrivals); }
MC_FN void barrier_init_done() {}
MC_FN void barrier_arrive(u32 barrier) { hopper_machine_arrive(barrier, 0); }
MC_FN void barrier_arrive_expect(u32 barrier, u32 bytes) { hopper_machine_arrive(barrier, bytes); }
MC_FN void barrier_arrive_copies(u32 barrier) { hopper_machine_arrive_copies(barrier); }
MC_FN void barrier_wait(u32 barrier, u32 parity) { hopper_machine_wait(barrier, parity); }
MC_FN void copy16(u32 shared, const void *global, bool valid) { hopper_machine_copy(shared, global, valid); }
MC_FN void copies_wait() { hopper_machine_copies_wait(); }
MC_FN void tensor_prefetch(const mc_tensor_map &) {}
MC_FN void fence_async() { hopper_machine_fence_async(); }
template <int N> MC_FN void registers_fewer() { hopper_machine_registers(N, 0); }
template <int N> MC_FN void registers_more() { hopper_machine_registers(N, 1); }
MC_FN void wgmma_begin() { hopper_machine_wgmma_begin(); }
MC_FN void wgmma_commit() { hopper_machine_wgmma_commit(); }
template <int N> MC_FN void wgmma_wait() { hopper_machine_wgmma_wait(N); }
MC_FN int is_f16(bf16) { return 0; }
MC_FN int is_f16(f16) { return 1; }
/* clang-format on */

MC_FN void
tensor_load(u32 shared, const mc_tensor_map &map, i32 x, i32 y, u32 barrier)
{
    hopper_machine_tensor(shared, &map, x, y, -1, barrier);
}

MC_FN void
tensor_load(u32 shared, const mc_tensor_map &map, i32 x, i32 y, i32 z, u32 barrier)
{
    hopper_machine_tensor(shared, &map, x, y, z, barrier);
}

template <typename T, int N>
MC_FN void
wgmma(f32 (&d)[N / 2], u64 a, u64 b, bool accumulate)
{
    hopper_machine_wgmma(d, N, a, b, accumulate, is_f16(T{}));
}
