// route_loss: loads of experts, routing losses and their derivatives. What is one number for all tokens is made in two
// steps: sums of parts in f64, then the sum of those in order, so the bits are always the same. Counts are integers,
// whose sums do not depend on the order.
//
// load_parts    ptr: weights, ids                i: A, E                         scratch: [chunks][E] counts, sums
// load_sum      ptr: load                        i: A, E
// count_clear   ptr: -                           i: n counts
// count         ptr: ids                         i: A, E, A of a sequence        scratch: parts, counts [sequences][E]
// balance_parts ptr: scores                      i: rows, E, rows of a sequence, A of one, sequences
// balance_sum   ptr: loss                        i: the same
// balance_grad  ptr: d, dscores                  i: the same                     f: d when its pointer is null
// z_parts       ptr: logits                      i: T                            scratch: parts
// z_sum         ptr: loss                        i: T
// z_grad        ptr: logits, d, dlogits          i: T                            f: d when its pointer is null
#pragma once
#include "row.cuh"

constexpr int LOAD_CHUNK = 1024, COUNT_CHUNK = 2048, PART_ROWS = 64, BALANCE_PARTS = 128;

MC_FN f32
cotangent(const mc_args &a, int n)
{
    return a.ptr[n] ? *arg<const f32>(a, n) : f32(a.f[0]);
}

// The sum of parts[0 .. n-1], the same in every run.
MC_FN f64
sum_parts(const f64 *parts, i64 n)
{
    f64 sum = 0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += parts[i];
    return block_sum(sum);
}

// ---- loads

struct load_part {
    f64 sum;
    i64 count;
};

MC_FN void
load_parts(const mc_args &a)
{
    MC_SHARED i32 ids[LOAD_CHUNK];
    MC_SHARED f32 weights[LOAD_CHUNK];
    i64 first = i64(blockIdx.x) * LOAD_CHUNK, E = a.i[1];
    int n = int(a.i[0] - first < LOAD_CHUNK ? a.i[0] - first : LOAD_CHUNK);
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
        weights[i] = arg<const f32>(a, 0)[first + i];
        ids[i] = arg<const i32>(a, 1)[first + i];
    }
    block_sync();
    for (i64 e = threadIdx.x; e < E; e += blockDim.x) {
        load_part part = {0, 0};
        for (int i = 0; i < n; i++) {
            if (ids[i] != e) continue;
            part.sum += weights[i];
            part.count++;
        }
        static_cast<load_part *>(a.scratch)[blockIdx.x * E + e] = part;
    }
}

MC_FN void
load_sum(const mc_args &a)
{
    i64 e = i64(blockIdx.x) * blockDim.x + threadIdx.x, E = a.i[1], chunks = (a.i[0] + LOAD_CHUNK - 1) / LOAD_CHUNK;
    if (e >= E) return;
    const load_part *parts = static_cast<const load_part *>(a.scratch);
    f64 sum = 0;
    i64 count = 0;
    for (i64 c = 0; c < chunks; c++) {
        sum += parts[c * E + e].sum;
        count += parts[c * E + e].count;
    }
    arg<f32>(a, 0)[e] = f32(count);
    arg<f32>(a, 0)[E + e] = f32(sum);
}

// ---- balance

MC_FN f64 *
balance_parts_of(const mc_args &a)
{
    return static_cast<f64 *>(a.scratch);
}

MC_FN i32 *
balance_counts(const mc_args &a)
{
    return reinterpret_cast<i32 *>(balance_parts_of(a) + BALANCE_PARTS);
}

MC_FN void
count_clear(const mc_args &a)
{
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < a.i[0]) balance_counts(a)[i] = 0;
}

// Long sequences are counted in shared memory first.
template <int E>
MC_FN void
count(const mc_args &a)
{
    MC_SHARED i32 here[E];
    i64 A = a.i[0], each = a.i[2], begin = i64(blockIdx.x) * COUNT_CHUNK;
    i64 end = begin + COUNT_CHUNK < A ? begin + COUNT_CHUNK : A;
    const i32 *ids = arg<const i32>(a, 0);
    i32 *counts = balance_counts(a);
    if (each < COUNT_CHUNK) {
        for (i64 i = begin + threadIdx.x; i < end; i += blockDim.x)
            if (u32(ids[i]) < u32(E)) atomic_add(&counts[i / each * E + ids[i]], 1);
        return;
    }
    for (i64 next; begin < end; begin = next) {
        i64 sequence = begin / each;
        next = (sequence + 1) * each < end ? (sequence + 1) * each : end;
        for (int e = int(threadIdx.x); e < E; e += int(blockDim.x)) here[e] = 0;
        block_sync();
        for (i64 i = begin + threadIdx.x; i < next; i += blockDim.x)
            if (u32(ids[i]) < u32(E)) atomic_add(&here[ids[i]], 1);
        block_sync();
        for (int e = int(threadIdx.x); e < E; e += int(blockDim.x))
            if (here[e]) atomic_add(&counts[sequence * E + e], here[e]);
        block_sync();
    }
}

// E / (k T) / T / sequences: what a count times a score is worth.
MC_FN f64
worth(const mc_args &a)
{
    return f64(a.i[1]) / f64(a.i[3]) / (f64(a.i[2]) * f64(a.i[4]));
}

// A warp takes a row at a time.
MC_FN void
balance_parts(const mc_args &a)
{
    i64 E = a.i[1], each = (a.i[0] + BALANCE_PARTS - 1) / BALANCE_PARTS, begin = blockIdx.x * each;
    i64 end = begin + each < a.i[0] ? begin + each : a.i[0];
    f64 sum = 0;
    for (i64 t = begin + (threadIdx.x >> 5); t < end; t += blockDim.x >> 5) {
        const f32 *scores = arg<const f32>(a, 0) + t * E;
        const i32 *counts = balance_counts(a) + t / a.i[2] * E;
        for (i64 e = lane_of(); e < E; e += 32) sum += f64(scores[e]) * counts[e];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) balance_parts_of(a)[blockIdx.x] = sum;
}

MC_FN void
balance_sum(const mc_args &a)
{
    f64 sum = sum_parts(balance_parts_of(a), BALANCE_PARTS);
    if (threadIdx.x == 0) *arg<f32>(a, 0) = a.i[0] > 0 ? f32(sum * worth(a)) : 0.0f;
}

MC_FN void
balance_grad(const mc_args &a)
{
    i64 E = a.i[1], t = warp_row();
    if (t >= a.i[0]) return;
    f32 scale = f32(f64(cotangent(a, 0)) * worth(a)), *y = arg<f32>(a, 1) + t * E;
    const i32 *counts = balance_counts(a) + t / a.i[2] * E;
    for (i64 e = lane_of(); e < E; e += 32) y[e] = f32(counts[e]) * scale;
}

// ---- z loss

template <int E>
MC_FN void
z_parts(const mc_args &a)
{
    int warps = int(blockDim.x >> 5);
    i64 begin = i64(blockIdx.x) * PART_ROWS, end = begin + PART_ROWS < a.i[0] ? begin + PART_ROWS : a.i[0];
    f64 sum = 0;
    for (i64 t = begin + (threadIdx.x >> 5); t < end; t += warps) {
        f32 max, of_exp;
        row_exp(row_load<E>(arg<const f32>(a, 0), t), max, of_exp);
        f64 z = max + logf(of_exp);
        sum += z * z;
    }
    sum = block_sum(lane_of() ? 0.0 : sum);
    if (threadIdx.x == 0) static_cast<f64 *>(a.scratch)[blockIdx.x] = sum;
}

MC_FN void
z_sum(const mc_args &a)
{
    f64 sum = sum_parts(static_cast<const f64 *>(a.scratch), (a.i[0] + PART_ROWS - 1) / PART_ROWS);
    if (threadIdx.x == 0) *arg<f32>(a, 0) = a.i[0] > 0 ? f32(sum / f64(a.i[0])) : 0.0f;
}

template <int E>
MC_FN void
z_grad(const mc_args &a)
{
    i64 t = warp_row();
    if (t >= a.i[0]) return;
    f32 max, sum, scale = 2.0f * cotangent(a, 1) / f32(a.i[0]);
    row<E> y = row_exp(row_load<E>(arg<const f32>(a, 0), t), max, sum);
    f32 factor = scale * (max + logf(sum)) / sum;
    row_store(arg<f32>(a, 2), t, row_map(y, [&](f32 x) { return x * factor; }));
}
