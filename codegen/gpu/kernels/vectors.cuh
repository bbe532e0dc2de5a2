// vectors: neighbouring elements of one thread as floats. V is a power of 2; the address is a multiple of V elements,
// or of 16 bytes where V elements are more.
#pragma once
#include "base.cuh"

template <typename T, int V> struct pieces {
    static constexpr int n = V * int(sizeof(T)) > 16 ? 16 / int(sizeof(T)) : V; /* elements of one access */
};

template <int V, typename T>
MC_FN void
load_floats(const T *p, f32 *x)
{
    constexpr int n = pieces<T, V>::n;
#pragma unroll
    for (int i = 0; i < V; i += n) {
        vec<T, n> part = load_vec<n>(p + i);
#pragma unroll
        for (int j = 0; j < n; j++) x[i + j] = to_float(part.v[j]);
    }
}

template <int V, typename T>
MC_FN void
store_floats(T *p, const f32 *x)
{
    constexpr int n = pieces<T, V>::n;
#pragma unroll
    for (int i = 0; i < V; i += n) {
        vec<T, n> part;
#pragma unroll
        for (int j = 0; j < n; j++) part.v[j] = from_float<T>(x[i + j]);
        store_vec(p + i, part);
    }
}

/* What x becomes when it lies in an array of T. */
template <typename T>
MC_FN f32
as_stored(f32 x)
{
    return to_float(from_float<T>(x));
}
