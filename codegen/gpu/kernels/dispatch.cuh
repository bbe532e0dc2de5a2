// dispatch: rows of experts from choices. The launches and their scratch: sort.cuh.
//
// dispatch  ptr: weights, ids, offsets, tokens, slots, gates, inverse   i: A, A - CHUNK, E
//           Whatever nobody reads is null. inverse[a] is the row of choice a, or -1 (for combine.cuh).
// sums      ptr: -                                                      i: n of a group, n - CHUNK, E, groups
// capacity  ptr: weights, ids, kept_weights, kept_ids                   i: n, n - CHUNK, E, groups, T, k   f: factor
//           A group is a slot of every token (per slot), or everything (groups = 1).
#pragma once
#include "sort.cuh"

template <int K> struct dispatch_rows {
    const f32 *weights;
    i32 *offsets, *tokens, *slots, *inverse;
    f32 *gates;

    MC_FN void
    row(i64 i, int, i32 r)
    {
        if (tokens) tokens[r] = i32(i) / K;
        if (slots) slots[r] = i32(i);
        if (gates) gates[r] = weights[i];
        if (inverse) inverse[i] = r;
    }

    MC_FN void
    none(i64 i)
    {
        if (inverse) inverse[i] = -1;
    }

    MC_FN void
    offset(int e, i32 r)
    {
        offsets[e] = r;
    }
};

template <int K>
MC_FN dispatch_rows<K>
rows_of(const mc_args &a)
{
    return {arg<const f32>(a, 0), arg<i32>(a, 2), arg<i32>(a, 3), arg<i32>(a, 4), arg<i32>(a, 6), arg<f32>(a, 5)};
}

template <int E, int K>
MC_FN void
dispatch_first(const mc_args &a)
{
    const i32 *ids = arg<const i32>(a, 1);
    sort_first<E, false>(
        a.i[0], static_cast<i32 *>(a.scratch), [&](i64 i) { return ids[i]; }, rows_of<K>(a));
}

template <int E, int K>
MC_FN void
dispatch_last(const mc_args &a)
{
    const i32 *ids = arg<const i32>(a, 1);
    sort_last<E, false>(
        a.i[0], static_cast<const i32 *>(a.scratch), [&](i64 i) { return ids[i]; }, rows_of<K>(a));
}

template <int E>
MC_FN void
dispatch_sums(const mc_args &a)
{
    sort_sums<E>(a.i[0], static_cast<i32 *>(a.scratch) + blockIdx.y * sort_scratch<E>(a.i[0]));
}

// max(1, ceil(T k / E * factor)), in this order.
MC_FN i64
capacity_of(const mc_args &a)
{
    f64 rows = ceil(f64(a.i[4]) * f64(a.i[5]) / f64(a.i[2]) * a.f[0]);
    return rows < 1 ? 1 : rows > 4611686018427387904.0 ? 4611686018427387904 : i64(rows);
}

template <int GROUPS> struct capacity_rows {
    const f32 *weights;
    const i32 *ids;
    f32 *kept_weights;
    i32 *kept_ids;
    i64 capacity;

    MC_FN void
    put(i64 i, bool kept)
    {
        i64 at = i * GROUPS + blockIdx.y;
        kept_weights[at] = kept ? weights[at] : 0.0f;
        kept_ids[at] = kept ? ids[at] : -1;
    }

    MC_FN void
    row(i64 i, int, i32 r)
    {
        put(i, r < capacity);
    }

    MC_FN void
    none(i64 i)
    {
        put(i, true);
    }

    MC_FN void
    offset(int, i32)
    {
    }
};

template <int GROUPS>
MC_FN capacity_rows<GROUPS>
capacity_rows_of(const mc_args &a)
{
    return {arg<const f32>(a, 0), arg<const i32>(a, 1), arg<f32>(a, 2), arg<i32>(a, 3), capacity_of(a)};
}

template <int E, int GROUPS>
MC_FN void
capacity_first(const mc_args &a)
{
    auto out = capacity_rows_of<GROUPS>(a);
    i32 *counts = static_cast<i32 *>(a.scratch) + blockIdx.y * sort_scratch<E>(a.i[0]);
    sort_first<E, true>(
        a.i[0], counts, [&](i64 i) { return out.ids[i * GROUPS + blockIdx.y]; }, out);
}

template <int E, int GROUPS>
MC_FN void
capacity_last(const mc_args &a)
{
    auto out = capacity_rows_of<GROUPS>(a);
    const i32 *counts = static_cast<const i32 *>(a.scratch) + blockIdx.y * sort_scratch<E>(a.i[0]);
    sort_last<E, true>(
        a.i[0], counts, [&](i64 i) { return out.ids[i * GROUPS + blockIdx.y]; }, out);
}
