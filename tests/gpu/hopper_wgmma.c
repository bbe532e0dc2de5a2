/* See hopper_machine.h: registers and products of a warpgroup. Every thread makes its own part of a product. */
#include "tests/gpu/hopper_state.h"

#include <string.h>

/* ---- registers and wgmma ------------------------------------------------------------------------------------------
 */

void
hopper_machine_registers(int n, int more)
{
    thread *t = machine.current;
    if (n % 8 || n < 24 || n > 256) machine_fail("setmaxnreg of %d", n);
    if (more != (n > t->registers)) machine_fail("setmaxnreg %s to %d from %d", more ? "up" : "down", n, t->registers);
    t->registers = n;
}

void
hopper_machine_fence_async(void)
{
    machine.current->fenced = true;
}

/* This and the next ones are .sync.aligned: the warp does them as one. */
void
hopper_machine_wgmma_begin(void)
{
    machine_together(MC_HOST_SYNC_WARP, NULL);
    machine.current->begun = true;
}

static float
widen(uint16_t bits, int is_f16)
{
    uint32_t all = (uint32_t)bits << 16;
    if (is_f16) {
        uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3FF;
        if (!exponent) return (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
        all = sign | (exponent == 31 ? 0x7F800000 : (exponent + 112) << 23) | fraction << 13;
    }
    float x;
    memcpy(&x, &all, sizeof x);
    return x;
}

/* 16 k of row `row` of a K-major operand in the 128-byte swizzle. PTX ISA, matrix descriptor: groups of 8 rows lie the
 * stride apart, rows of a group 128 bytes; what the swizzle works on is the address. */
static void
operand_row(uint64_t descriptor, int row, int is_f16, float out[16])
{
    unsigned start = (unsigned)(descriptor & 0x3FFF) << 4, stride = (unsigned)(descriptor >> 32 & 0x3FFF) << 4;
    if (descriptor >> 62 != 1) machine_fail("a descriptor of another swizzle");
    if (descriptor >> 49 & 7) machine_fail("a descriptor with a base offset");
    unsigned at = start + (unsigned)(row / 8) * stride + (unsigned)(row % 8) * LINE;
    for (unsigned chunk = 0; chunk < 2; chunk++) {
        uint16_t values[8];
        memcpy(values, machine_shared_at(machine_swizzled(at + chunk * 16), 16), 16);
        for (int i = 0; i < 8; i++) out[chunk * 8 + (unsigned)i] = widen(values[i], is_f16);
    }
}

/* This thread's part of the 64 x n result. PTX ISA, "WGMMA .m64nNk16 register fragment layout for accumulator": warp w
 * of the warpgroup has rows 16 w on; lane l has columns 2 (l % 4) and the next one of every 8, in rows l / 4 and l / 4
 * + 8. */
static void
multiply(const product *p)
{
    int lane = machine.current->lane, rows = (int)machine.current->index.x % WARPGROUP / LANES * 16;
    float a[2][16], b[16];
    for (int half = 0; half < 2; half++) operand_row(p->a, rows + lane / 4 + half * 8, p->is_f16, a[half]);
    for (int column = 0; column < p->n / 4; column++) {
        operand_row(p->b, column / 2 * 8 + lane % 4 * 2 + column % 2, p->is_f16, b);
        for (int half = 0; half < 2; half++) {
            float *d = &p->d[column / 2 * 4 + half * 2 + column % 2], sum = p->accumulate ? *d : 0;
            for (int k = 0; k < 16; k++) sum += a[half][k] * b[k];
            *d = sum;
        }
    }
    machine.counts[0]++;
}

void
hopper_machine_wgmma(float *d, int n, unsigned long long a, unsigned long long b, int accumulate, int is_f16)
{
    thread *t = machine.current;
    if (!t->begun) machine_fail("a wgmma without wgmma.fence before it");
    if (machine.copied && !t->fenced) machine_fail("a wgmma reads what threads copied, without fence.proxy.async");
    if (t->n_products == MAX_PRODUCTS) machine_fail("too many wgmma under way");
    product p = {d, n, accumulate, is_f16, t->batch, a, b};
    if (machine.launch->late)
        t->products[t->n_products++] = p;
    else
        multiply(&p);
}

void
hopper_machine_wgmma_commit(void)
{
    machine.current->batch++;
    machine.current->begun = false;
}

void
hopper_machine_wgmma_wait(int n)
{
    thread *t = machine.current;
    int left = 0;
    for (int i = 0; i < t->n_products; i++) {
        if (t->products[i].batch < t->batch - n)
            multiply(&t->products[i]);
        else
            t->products[left++] = t->products[i];
    }
    t->n_products = left;
    machine_together(MC_HOST_SYNC_WARP, NULL);
}
