// row: what routing does to the values of one token. A row lives in the registers of a warp, element e in lane e % 32;
// ids of chosen experts are rows too. Kernels of routing chains (codegen/gpu/route_chain.c) are calls of these
// functions, one after another. Choices are made on integers that order as routing does, so they are exact.
#pragma once
#include "activation.cuh"

template <typename T, int N> struct line {
    static constexpr int n = (N + 31) / 32;
    T v[n]; // element j * 32 + lane; past N: anything
};
template <int N> using row = line<f32, N>;
template <int N> using id_row = line<i32, N>;

constexpr i32 NOWHERE = -2147483647 - 1; // below the order of every number
constexpr i32 FARTHEST = 2147483647;

MC_FN int
lane_of()
{
    return int(threadIdx.x & 31);
}

// The element that register j of this lane holds.
MC_FN int
element(int j)
{
    return j * 32 + lane_of();
}

// The row of this warp; warps of a block take neighbouring rows.
MC_FN i64
warp_row()
{
    return i64(blockIdx.x) * (blockDim.x >> 5) + (threadIdx.x >> 5);
}

// NaN greatest, -0 equal to 0, -inf above NOWHERE.
MC_FN i32
order_of(f32 x)
{
    i32 bits = i32(f32_bits(add_rn(x, 0.0f)));
    return x != x ? FARTHEST : bits ^ (bits >> 31 & FARTHEST);
}

// A number of that order.
MC_FN f32
number_of(i32 order)
{
    return bits_f32(u32(order ^ (order >> 31 & FARTHEST)));
}

// ---- memory

template <int N, typename T>
MC_FN row<N>
row_load(const T *p, i64 at)
{
    row<N> y;
    p += at * N;
#pragma unroll
    for (int j = 0; j < y.n; j++) y.v[j] = element(j) < N ? to_float(p[element(j)]) : 0.0f;
    return y;
}

template <int N>
MC_FN id_row<N>
row_load_ids(const i32 *p, i64 at)
{
    id_row<N> y;
    p += at * N;
#pragma unroll
    for (int j = 0; j < y.n; j++) y.v[j] = element(j) < N ? p[element(j)] : -1;
    return y;
}

template <int N, typename T>
MC_FN void
row_store(T *p, i64 at, const row<N> &x)
{
    p += at * N;
#pragma unroll
    for (int j = 0; j < x.n; j++)
        if (element(j) < N) p[element(j)] = from_float<T>(x.v[j]);
}

template <int N>
MC_FN void
row_store(i32 *p, i64 at, const id_row<N> &x)
{
    p += at * N;
#pragma unroll
    for (int j = 0; j < x.n; j++)
        if (element(j) < N) p[element(j)] = x.v[j];
}

// ---- elementwise

template <int N>
MC_FN row<N>
row_fill(f32 x)
{
    row<N> y;
#pragma unroll
    for (int j = 0; j < y.n; j++) y.v[j] = x;
    return y;
}

template <int N>
MC_FN row<N>
row_stretch(const row<1> &x)
{
    return row_fill<N>(shfl(x.v[0], 0));
}

template <int N, typename F>
MC_FN row<N>
row_map(const row<N> &x, F f)
{
    row<N> y;
#pragma unroll
    for (int j = 0; j < y.n; j++) y.v[j] = f(x.v[j]);
    return y;
}

template <int N, typename F>
MC_FN row<N>
row_map(const row<N> &a, const row<N> &b, F f)
{
    row<N> y;
#pragma unroll
    for (int j = 0; j < y.n; j++) y.v[j] = f(a.v[j], b.v[j]);
    return y;
}

// ---- sums and softmax

template <int N, typename F>
MC_FN f32
row_sum_of(F f)
{
    f32 sum = 0;
#pragma unroll
    for (int j = 0; j < row<N>::n; j++) sum += element(j) < N ? f(j) : 0.0f;
    return warp_sum(sum);
}

template <int N>
MC_FN f32
row_sum(const row<N> &x)
{
    return row_sum_of<N>([&](int j) { return x.v[j]; });
}

template <int N>
MC_FN f32
row_max(const row<N> &x)
{
    f32 m = -INFINITY;
#pragma unroll
    for (int j = 0; j < x.n; j++)
        if (element(j) < N) m = fmaxf(m, x.v[j]);
    return warp_max(m);
}

// exp(x - maximum), and its sum.
template <int N>
MC_FN row<N>
row_exp(const row<N> &x, f32 &max, f32 &sum)
{
    f32 m = row_max(x);
    row<N> y = row_map(x, [&](f32 e) { return expf(e - m); });
    sum = row_sum(y);
    max = m;
    return y;
}

template <int N>
MC_FN row<N>
row_softmax(const row<N> &x)
{
    f32 max, sum;
    row<N> y = row_exp(x, max, sum);
    return row_map(y, [&](f32 e) { return e / sum; });
}

template <int N>
MC_FN row<N>
row_softmax_grad(const row<N> &y, const row<N> &dy)
{
    f32 along = row_sum_of<N>([&](int j) { return y.v[j] * dy.v[j]; });
    return row_map(y, dy, [&](f32 p, f32 d) { return p * (d - along); });
}

// ---- renorm

enum { RENORM_SUM, RENORM_POWER, RENORM_FLOOR };

// (sum |w|^p)^(1/p), or the plain sum with a floor.
template <int FORM, int N>
MC_FN f32
renorm_length(const row<N> &w, f32 p)
{
    f32 sum = row_sum_of<N>([&](int j) {
        f32 x = w.v[j];
        return FORM == RENORM_FLOOR ? x : FORM == RENORM_SUM ? fabsf(x) : powf(fabsf(x), p);
    });
    return FORM == RENORM_POWER ? powf(sum, 1.0f / p) : sum;
}

template <int FORM, int N>
MC_FN row<N>
row_renorm(const row<N> &w, f32 eps, f32 p, f32 floor)
{
    f32 length = renorm_length<FORM>(w, p), by = FORM == RENORM_FLOOR ? fmaxf(length, floor) : length + eps;
    return row_map(w, [&](f32 x) { return x / by; });
}

// y = w / D(w): dw = (dy - dD * sum(dy * y)) / D.
template <int FORM, int N>
MC_FN row<N>
row_renorm_grad(const row<N> &w, const row<N> &dy, f32 eps, f32 p, f32 floor)
{
    f32 length = renorm_length<FORM>(w, p), by = FORM == RENORM_FLOOR ? fmaxf(length, floor) : length + eps;
    f32 along = row_sum_of<N>([&](int j) { return dy.v[j] * (w.v[j] / by); });
    return row_map(w, dy, [&](f32 x, f32 d) {
        f32 slope = FORM == RENORM_FLOOR ? (length < floor ? 0.0f : 1.0f)
                    : x == 0.0f          ? 0.0f
                    : FORM == RENORM_SUM ? 1.0f
                                         : powf(fabsf(x) / length, p - 1.0f);
        if (FORM != RENORM_FLOOR && x < 0.0f) slope = -slope;
        return (d - slope * along) / by;
    });
}

// ---- choosing

// The greatest order, and the lowest element that has it.
template <int N>
MC_FN i32
row_best(const id_row<N> &order, int &id)
{
    i32 best = NOWHERE;
    int at = FARTHEST;
#pragma unroll
    for (int j = 0; j < order.n; j++) {
        bool better = order.v[j] > best;
        at = better ? element(j) : at;
        best = better ? order.v[j] : best;
    }
    i32 top = warp_max(best);
    id = warp_min(best == top ? at : int(FARTHEST));
    return top;
}

template <int N>
MC_FN id_row<N>
row_orders(const row<N> &key)
{
    id_row<N> y;
#pragma unroll
    for (int j = 0; j < y.n; j++) y.v[j] = element(j) < N ? order_of(key.v[j]) : NOWHERE;
    return y;
}

template <int N, int K>
MC_FN void
row_top(const row<N> &value, const row<N> &key, row<K> &weights, id_row<K> &ids)
{
    id_row<N> order = row_orders(key);
#pragma unroll 1
    for (int s = 0; s < K; s++) {
        int id;
        row_best(order, id);
        f32 mine = 0;
#pragma unroll
        for (int j = 0; j < order.n; j++) {
            bool here = element(j) == id;
            mine = here ? value.v[j] : mine;
            order.v[j] = here ? NOWHERE : order.v[j];
        }
        f32 weight = shfl(mine, id & 31);
#pragma unroll
        for (int j = 0; j < ids.n; j++) {
            bool here = element(j) == s;
            weights.v[j] = here ? weight : weights.v[j];
            ids.v[j] = here ? id : ids.v[j];
        }
    }
}

enum { BY_MAX, BY_TOP2, BY_SUM };

// The order of the score of elements begin .. begin + SIZE - 1.
template <int BY, int SIZE, int N>
MC_FN i32
group_score(const row<N> &key, const id_row<N> &order, int begin)
{
    i32 first = NOWHERE, second = NOWHERE;
    f32 sum = 0;
#pragma unroll
    for (int j = 0; j < key.n; j++) {
        int at = element(j) - begin;
        if (at < 0 || at >= SIZE) continue;
        if (BY == BY_SUM) sum += key.v[j];
        second = order.v[j] > first ? first : greater(second, order.v[j]);
        first = greater(first, order.v[j]);
    }
    if (BY == BY_SUM) return order_of(warp_sum(sum));
    i32 best = warp_max(first);
    if (BY == BY_MAX || SIZE == 1) return best;
    int holder = warp_min(first == best ? lane_of() : 32);
    i32 next = warp_max(lane_of() == holder ? second : first);
    return order_of(number_of(best) + number_of(next));
}

// Keys outside the best KEEP of GROUPS equal runs become -inf.
template <int GROUPS, int KEEP, int BY, int N>
MC_FN row<N>
row_groups(const row<N> &key)
{
    constexpr int SIZE = N / GROUPS;
    id_row<N> order = row_orders(key);
    id_row<GROUPS> score;
#pragma unroll
    for (int j = 0; j < score.n; j++) score.v[j] = NOWHERE;
#pragma unroll(GROUPS <= 16 ? GROUPS : 1)
    for (int g = 0; g < GROUPS; g++) {
        i32 s = group_score<BY, SIZE>(key, order, g * SIZE);
#pragma unroll
        for (int j = 0; j < score.n; j++) score.v[j] = element(j) == g ? s : score.v[j];
    }
    u32 kept[id_row<GROUPS>::n] = {}; // bit g % 32 of word g / 32
#pragma unroll 1
    for (int i = 0; i < KEEP; i++) {
        int g;
        row_best(score, g);
#pragma unroll
        for (int j = 0; j < score.n; j++) {
            kept[j] |= g >> 5 == j ? 1u << (g & 31) : 0;
            score.v[j] = element(j) == g ? NOWHERE : score.v[j];
        }
    }
    row<N> y;
#pragma unroll
    for (int j = 0; j < y.n; j++) {
        int g = element(j) / SIZE;
        u32 word = kept[0];
#pragma unroll
        for (int i = 1; i < score.n; i++) word = g >> 5 == i ? kept[i] : word;
        y.v[j] = word >> (g & 31) & 1 ? key.v[j] : -INFINITY;
    }
    return y;
}

// One of PhiMoE's choices: the best of z without `taken`, and its share in the softmax over those near it.
template <int N>
MC_FN int
sparse_choice(const row<N> &z, int taken, f32 twice, f32 &weight)
{
    id_row<N> order = row_orders(z);
#pragma unroll
    for (int j = 0; j < order.n; j++)
        if (element(j) == taken) order.v[j] = NOWHERE;
    int best;
    row_best(order, best);
    f32 mine = 0;
#pragma unroll
    for (int j = 0; j < z.n; j++) mine = element(j) == best ? z.v[j] : mine;
    f32 max = shfl(mine, best & 31);
    f32 sum = row_sum_of<N>([&](int j) {
        f32 x = z.v[j], gap = (max - x) / fmaxf(fabsf(x), max);
        return element(j) != taken && !(gap > twice) ? expf(x - max) : 0.0f;
    });
    weight = 1.0f / sum;
    return best;
}

template <int N>
MC_FN void
row_sparsemixer(const row<N> &z, f32 eps, row<2> &weights, id_row<2> &ids)
{
    f32 first, second;
    int a = sparse_choice(z, -1, 2.0f * eps, first), b = sparse_choice(z, a, 2.0f * eps, second);
    weights.v[0] = lane_of() ? second : first;
    ids.v[0] = lane_of() ? b : a;
}

// ---- by id

// Elements of a row; ids outside it give 0.
template <int N, int K>
MC_FN row<K>
row_take(const row<N> &table, const id_row<K> &ids)
{
    row<K> y;
#pragma unroll
    for (int i = 0; i < y.n; i++) {
        f32 mine = 0;
#pragma unroll
        for (int j = 0; j < table.n; j++) {
            f32 x = shfl(table.v[j], ids.v[i] & 31);
            mine = ids.v[i] >> 5 == j ? x : mine;
        }
        y.v[i] = u32(ids.v[i]) < u32(N) ? mine : 0.0f;
    }
    return y;
}

// The same from memory.
template <int N, int K, typename T>
MC_FN row<K>
row_look(const T *table, const id_row<K> &ids)
{
    row<K> y;
#pragma unroll
    for (int i = 0; i < y.n; i++) {
        bool real = element(i) < K && u32(ids.v[i]) < u32(N);
        y.v[i] = real ? to_float(table[real ? ids.v[i] : 0]) : 0.0f;
    }
    return y;
}

// y[e] = sum of w[j] over the j with ids[j] = e, ascending.
template <int N, int K>
MC_FN row<N>
row_scatter(const row<K> &w, const id_row<K> &ids)
{
    row<N> y = row_fill<N>(0);
#pragma unroll
    for (int i = 0; i < w.n; i++) {
#pragma unroll 1
        for (int s = i * 32; s < K && s < i * 32 + 32; s++) {
            int id = shfl(ids.v[i], s & 31);
            f32 x = shfl(w.v[i], s & 31);
#pragma unroll
            for (int j = 0; j < y.n; j++) y.v[j] = element(j) == id ? y.v[j] + x : y.v[j];
        }
    }
    return y;
}

template <int K>
MC_FN row<K>
row_mask(const row<K> &w, const id_row<K> &ids, i32 from)
{
    row<K> y;
#pragma unroll
    for (int j = 0; j < y.n; j++) y.v[j] = ids.v[j] >= from ? w.v[j] : 0.0f;
    return y;
}
