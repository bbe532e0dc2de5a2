/* What the threads of a warp do together, for all lanes at once when the last one has come: so no lane sees what
 * another one does after it. Layouts of fragments: PTX ISA, "Warp-level matrix instructions". */
#include "tests/gpu/emulate.h"

#include <string.h>

enum { LANES = 32 };

static void
shuffle(void *const *lanes, int n)
{
    unsigned char all[LANES][16];
    for (int i = 0; i < n; i++) {
        const struct mc_host_shuffle *s = lanes[i];
        memcpy(all[i], s->x, (size_t)s->n_bytes);
    }
    for (int i = 0; i < n; i++) {
        const struct mc_host_shuffle *s = lanes[i];
        if (s->from < n)
            memcpy(s->result, all[s->from], (size_t)s->n_bytes);
        else
            memset(s->result, 0xFF, (size_t)s->n_bytes); /* a lane that there is not */
    }
}

static void
ballot(void *const *lanes, int n)
{
    unsigned all = 0;
    for (int i = 0; i < n; i++) all |= ((const struct mc_host_vote *)lanes[i])->mine << i;
    for (int i = 0; i < n; i++) ((struct mc_host_vote *)lanes[i])->result = all;
}

static void
ldmatrix(void *const *lanes, bool transposed)
{
    uint16_t rows[4][8][8];
    for (int i = 0; i < LANES; i++) memcpy(rows[i / 8][i % 8], ((const struct mc_host_matrices *)lanes[i])->row, 16);
    for (int i = 0; i < LANES; i++)
        for (int m = 0; m < 4; m++) {
            int group = i / 4, pair = i % 4 * 2;
            uint32_t low = transposed ? rows[m][pair][group] : rows[m][group][pair];
            uint32_t high = transposed ? rows[m][pair + 1][group] : rows[m][group][pair + 1];
            ((const struct mc_host_matrices *)lanes[i])->r[m] = low | high << 16;
        }
}

static float
bits_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float
widen_f16(uint32_t bits)
{
    uint32_t sign = (bits & 0x8000) << 16, magnitude = bits & 0x7FFF;
    if (magnitude >= 0x7C00) return bits_float(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    float x = bits_float(magnitude << 13) * bits_float((127u + 112) << 23);
    return sign ? -x : x;
}

static float
widen(enum mc_host_kind kind, uint32_t half)
{
    return kind == MC_HOST_MMA_BF16 ? bits_float(half << 16) : widen_f16(half);
}

/* a[row][k], b[k][column] of the whole warp; k = 16 elements of 16 bits. */
static void
gather_16(enum mc_host_kind kind, void *const *lanes, float a[16][16], float b[16][8])
{
    for (int i = 0; i < LANES; i++) {
        const struct mc_host_mma *m = lanes[i];
        int group = i / 4, pair = i % 4 * 2;
        for (int r = 0; r < 4; r++)
            for (int h = 0; h < 2; h++)
                a[group + r % 2 * 8][pair + h + r / 2 * 8] = widen(kind, m->a[r] >> 16 * h & 0xFFFF);
        for (int r = 0; r < 2; r++)
            for (int h = 0; h < 2; h++) b[pair + h + r * 8][group] = widen(kind, m->b[r] >> 16 * h & 0xFFFF);
    }
}

/* k = 8 elements of f32, of which the hardware reads the upper 19 bits. */
static void
gather_8(void *const *lanes, float a[16][16], float b[16][8])
{
    for (int i = 0; i < LANES; i++) {
        const struct mc_host_mma *m = lanes[i];
        int group = i / 4, at = i % 4;
        for (int r = 0; r < 4; r++) a[group + r % 2 * 8][at + r / 2 * 4] = bits_float(m->a[r] & ~0x1FFFu);
        for (int r = 0; r < 2; r++) b[at + r * 4][group] = bits_float(m->b[r] & ~0x1FFFu);
    }
}

static void
mma(enum mc_host_kind kind, void *const *lanes)
{
    float a[16][16], b[16][8], d[16][8] = {{0}};
    int depth = kind == MC_HOST_MMA_TF32 ? 8 : 16;
    if (depth == 8)
        gather_8(lanes, a, b);
    else
        gather_16(kind, lanes, a, b);
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < depth; k++)
            for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    for (int i = 0; i < LANES; i++) {
        const struct mc_host_mma *m = lanes[i];
        for (int r = 0; r < 4; r++) m->d[r] += d[i / 4 + r / 2 * 8][i % 4 * 2 + r % 2];
    }
}

void
emulate_warp_work(enum mc_host_kind kind, void *const *lanes, int n)
{
    switch (kind) {
    case MC_HOST_SHFL:
    case MC_HOST_SHFL_XOR:
    case MC_HOST_SHFL_UP:
    case MC_HOST_SHFL_DOWN: shuffle(lanes, n); return;
    case MC_HOST_BALLOT: ballot(lanes, n); return;
    case MC_HOST_LDMATRIX: ldmatrix(lanes, false); return;
    case MC_HOST_LDMATRIX_TRANS: ldmatrix(lanes, true); return;
    case MC_HOST_MMA_BF16:
    case MC_HOST_MMA_F16:
    case MC_HOST_MMA_TF32: mma(kind, lanes); return;
    case MC_HOST_NOTHING:
    case MC_HOST_SYNC_WARP:
    case MC_HOST_SYNC_BLOCK: return;
    }
}
