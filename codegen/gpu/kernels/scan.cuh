// Recurrences over positions: selective_scan (Mamba) and delta_scan (gated delta rule). A column of the state never
// meets another, so a few lanes carry a column through all positions in registers; no thread waits for another warp.
// Inputs of later positions are on their way while one is computed.
//
// selective_scan  ptr: x, dt, a, b, c, state, y      i: B * d, S, d
// delta_scan      ptr: q, k, v, g, beta, state, y    i: blocks (B * H * ceil(DV / DELTA_COLUMNS)), S, H, HK    f: scale
#pragma once
#include "base.cuh"

template <int LANES>
MC_FN f32
lanes_sum(f32 x)
{
#pragma unroll
    for (int mask = LANES / 2; mask; mask /= 2) x += shfl_xor(x, mask);
    return x;
}

enum { SCAN_AHEAD = 4 };

// LANES lanes for each channel, each with every LANES-th of N states.
template <int N, int LANES>
MC_FN void
selective_scan(const mc_args &a)
{
    constexpr int R = (N + LANES - 1) / LANES;
    i64 task = (i64(blockIdx.x) * blockDim.x + threadIdx.x) / LANES, n_s = a.i[1], d = a.i[2];
    bool real = task < a.i[0];
    if (!real) task = 0;
    i64 sequence = task / d, channel = task % d;
    int lane = int(threadIdx.x % LANES);
    const f32 *x = arg<const f32>(a, 0) + sequence * n_s * d + channel,
              *dt = arg<const f32>(a, 1) + sequence * n_s * d + channel;
    const f32 *b = arg<const f32>(a, 3) + sequence * n_s * N, *c = arg<const f32>(a, 4) + sequence * n_s * N;
    f32 *state = arg<f32>(a, 5) + task * N, *y = arg<f32>(a, 6) + sequence * n_s * d + channel;
    f32 h[R], decay[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        int i = lane + r * LANES;
        h[r] = i < N ? state[i] : 0.0f;
        decay[r] = i < N ? arg<const f32>(a, 2)[channel * N + i] : 0.0f;
    }
    for (i64 first = 0; first < n_s; first += SCAN_AHEAD) {
        f32 steps[SCAN_AHEAD], inputs[SCAN_AHEAD], bs[SCAN_AHEAD][R], cs[SCAN_AHEAD][R];
#pragma unroll
        for (int s = 0; s < SCAN_AHEAD; s++) {
            i64 t = lesser(first + s, n_s - 1);
            steps[s] = dt[t * d];
            inputs[s] = x[t * d];
#pragma unroll
            for (int r = 0; r < R; r++) {
                int i = lesser(lane + r * LANES, N - 1);
                bs[s][r] = b[t * N + i];
                cs[s][r] = c[t * N + i];
            }
        }
#pragma unroll
        for (int s = 0; s < SCAN_AHEAD; s++) {
            if (first + s >= n_s) break;
            f32 input = steps[s] * inputs[s], sum = 0;
#pragma unroll
            for (int r = 0; r < R; r++) {
                if (lane + r * LANES >= N) continue;
                h[r] = fmaf(expf(steps[s] * decay[r]), h[r], input * bs[s][r]);
                sum = fmaf(h[r], cs[s][r], sum);
            }
            sum = lanes_sum<LANES>(sum);
            if (real && lane == 0) y[(first + s) * d] = sum;
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++)
        if (real && lane + r * LANES < N) state[lane + r * LANES] = h[r];
}

enum { DELTA_LANES = 8, DELTA_COLUMNS = 16 }; // lanes of a column, columns of a block of 128 threads

template <int R> struct delta_inputs {
    f32 q[R], k[R], v, g, beta;
};

template <int DK, int DV> struct delta_column {
    static constexpr int R = (DK + DELTA_LANES - 1) / DELTA_LANES;
    const f32 *q, *k, *v, *g, *beta; // of position 0
    i64 qk_step, v_step, g_step;
    int lane;

    MC_FN void
    load(i64 t, delta_inputs<R> &x) const
    {
#pragma unroll
        for (int r = 0; r < R; r++) {
            int i = lane + r * DELTA_LANES;
            x.q[r] = i < DK ? q[t * qk_step + i] : 0.0f;
            x.k[r] = i < DK ? k[t * qk_step + i] : 0.0f;
        }
        x.v = v[t * v_step];
        x.g = g[t * g_step];
        x.beta = beta[t * g_step];
    }
};

// M of a head is [DK][DV]; a lane holds every DELTA_LANES-th row of its column.
template <int DK, int DV>
MC_FN void
delta_scan(const mc_args &a)
{
    using column = delta_column<DK, DV>;
    constexpr int R = column::R, BLOCKS = (DV + DELTA_COLUMNS - 1) / DELTA_COLUMNS;
    i64 n_s = a.i[1], heads = a.i[2], key_heads = a.i[3], head_index = blockIdx.x / BLOCKS;
    i64 sequence = head_index / heads, head = head_index % heads, key_head = head / (heads / key_heads);
    int j = int(blockIdx.x % BLOCKS) * DELTA_COLUMNS + int(threadIdx.x / DELTA_LANES);
    bool real = j < DV;
    if (!real) j = 0;
    column c;
    c.lane = int(threadIdx.x % DELTA_LANES);
    c.qk_step = key_heads * DK;
    c.v_step = heads * DV;
    c.g_step = heads;
    c.q = arg<const f32>(a, 0) + (sequence * n_s * key_heads + key_head) * DK;
    c.k = arg<const f32>(a, 1) + (sequence * n_s * key_heads + key_head) * DK;
    c.v = arg<const f32>(a, 2) + (sequence * n_s * heads + head) * DV + j;
    c.g = arg<const f32>(a, 3) + sequence * n_s * heads + head;
    c.beta = arg<const f32>(a, 4) + sequence * n_s * heads + head;
    f32 *state = arg<f32>(a, 5) + head_index * DK * DV + j,
        *y = arg<f32>(a, 6) + (sequence * n_s * heads + head) * DV + j;
    f32 m[R], scale = f32(a.f[0]);
#pragma unroll
    for (int r = 0; r < R; r++) m[r] = c.lane + r * DELTA_LANES < DK ? state[i64(c.lane + r * DELTA_LANES) * DV] : 0.0f;
    delta_inputs<R> now, next;
    if (n_s > 0) c.load(0, now);
    for (i64 t = 0; t < n_s; t++) {
        c.load(lesser(t + 1, n_s - 1), next);
        f32 decay = expf(now.g), seen = 0, sum = 0;
#pragma unroll
        for (int r = 0; r < R; r++) {
            m[r] *= decay;
            seen = fmaf(now.k[r], m[r], seen);
        }
        f32 change = now.beta * (now.v - lanes_sum<DELTA_LANES>(seen));
#pragma unroll
        for (int r = 0; r < R; r++) {
            m[r] = fmaf(now.k[r], change, m[r]);
            sum = fmaf(scale * now.q[r], m[r], sum);
        }
        sum = lanes_sum<DELTA_LANES>(sum);
        if (real && c.lane == 0) y[t * c.v_step] = sum;
        now = next;
    }
#pragma unroll
    for (int r = 0; r < R; r++)
        if (real && c.lane + r * DELTA_LANES < DK) state[i64(c.lane + r * DELTA_LANES) * DV] = m[r];
}
