// See hopper_forms.h. Includes no header of the C library: host.cuh declares what kernels call.
#define MC_HOST 1
#include "tests/gpu/hopper_forms.h"
#include "codegen/gpu/kernels/hopper.cuh"

namespace
{

enum { DENSE = ALIGNED | EVEN | CORES, MOE = DENSE | EXPERTS };

struct call {
    hopper_form form;
    const mc_args *args;
    const mc_maps *maps;
};

void
body(void *data)
{
    const call &c = *static_cast<const call *>(data);
    switch (c.form) {
    case FORM_UP: hopper<form<bf16, bf16, bf16, f32, MOE | PAIR, quick_silu>>(*c.args, *c.maps); return;
    case FORM_UP_F16: hopper<form<f16, f16, f16, f32, MOE | PAIR, op_relu2>>(*c.args, *c.maps); return;
    case FORM_DOWN: hopper<form<bf16, bf16, f32, f32, MOE>>(*c.args, *c.maps); return;
    case FORM_GATHER: hopper<form<bf16, bf16, bf16, f32, MOE>>(*c.args, *c.maps); return;
    case FORM_LINEAR: hopper<form<bf16, bf16, f32, f32, DENSE>>(*c.args, *c.maps); return;
    case FORM_LINEAR_F16: hopper<form<f16, f16, f16, f32, DENSE>>(*c.args, *c.maps); return;
    case FORM_GATED: hopper<form<bf16, bf16, bf16, f32, DENSE | PAIR, quick_gelu_tanh>>(*c.args, *c.maps); return;
    case N_FORMS: return;
    }
}

struct tiles_call {
    const i32 *offsets;
    i32 groups, height, columns;
    int (*into)[3];
    i32 room, n;
};

void
tiles_body(void *data)
{
    tiles_call &c = *static_cast<tiles_call *>(data);
    MC_SHARED i32 first[SCHEDULE_GROUPS + 1];
    i32 n = schedule_build(first, c.offsets, c.groups, c.height, c.columns);
    if (threadIdx.x == 0) c.n = n;
    for (i32 i = i32(threadIdx.x); i < n && i < c.room; i += i32(blockDim.x)) {
        mc_tile t = schedule_tile(first, c.groups, c.columns, i);
        c.into[i][0] = t.group;
        c.into[i][1] = t.row;
        c.into[i][2] = t.column;
    }
}

} // namespace

extern "C" {

int
hopper_forms_run(hopper_form form, const hopper_launch *launch, const void *args, const void *maps)
{
    call c{form, static_cast<const mc_args *>(args), static_cast<const mc_maps *>(maps)};
    return hopper_machine_run(launch, mc_host_get(), body, &c);
}

int
hopper_forms_tiles(const int *offsets, int groups, int height, int columns, int (*into)[3], int room)
{
    tiles_call c{offsets, groups, height, columns, into, room, -1};
    hopper_launch launch{1, HOPPER_THREADS, 1, 0};
    return hopper_machine_run(&launch, mc_host_get(), tiles_body, &c) ? c.n : -1;
}

unsigned
hopper_forms_brick_offset(unsigned row, unsigned chunk)
{
    return brick_offset(row, chunk);
}

unsigned long long
hopper_forms_descriptor(unsigned address, unsigned part)
{
    return wgmma_descriptor_k(wgmma_descriptor(address), part);
}

unsigned
hopper_forms_fragment_row(unsigned thread, unsigned i)
{
    return wgmma_row(thread, i);
}

unsigned
hopper_forms_fragment_column(unsigned thread, unsigned i)
{
    return wgmma_column(thread, i);
}

unsigned
hopper_forms_copy_row(unsigned thread, unsigned i)
{
    return copy_row(thread, i);
}

unsigned
hopper_forms_copy_chunk(unsigned thread)
{
    return copy_chunk(thread);
}

unsigned
hopper_forms_copy_offset(unsigned thread, unsigned i)
{
    return brick_offset(copy_row(thread, 0), copy_chunk(thread)) + i * COPY_STEP * BRICK_LINE;
}

unsigned
hopper_forms_threads()
{
    return HOPPER_THREADS;
}

unsigned
hopper_forms_shared_bytes()
{
    return hopper_shape<form<bf16, bf16, bf16, f32, MOE>, HOPPER_LINES, HOPPER_STAGES>::BYTES;
}

void
hopper_forms_ring(unsigned n, unsigned *stage, unsigned *parity)
{
    ring_place<4> at{0, 0};
    for (; n; n--) at.next();
    *stage = at.stage;
    *parity = at.parity;
}
}
