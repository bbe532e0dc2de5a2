// cast: elements of one type as another, where one of them is no float of at most 32 bits. As the interpreter does, by
// way of f64: integers saturate, NaN becomes 0, anything but 0 is true (truth values are read as u8).
//
// ptr: x, y   i: elements
#pragma once
#include "base.cuh"

template <typename T>
MC_FN f64
widen(T x)
{
    return to_float(x);
}

template <>
MC_FN f64
widen(f64 x)
{
    return x;
}

template <>
MC_FN f64
widen(i32 x)
{
    return x;
}

template <>
MC_FN f64
widen(i64 x)
{
    return f64(x);
}

template <>
MC_FN f64
widen(i8 x)
{
    return x;
}

template <>
MC_FN f64
widen(u8 x)
{
    return x;
}

template <typename T> struct narrower {
    static MC_FN T
    from(f64 x)
    {
        return from_float<T>(f32(x));
    }
};

/* The greatest value is given as the first f64 that is too great. */
template <typename T>
MC_FN T
saturate(f64 x, T least, f64 above, T greatest)
{
    return x != x ? T(0) : x >= above ? greatest : x <= f64(least) ? least : T(x);
}

template <> struct narrower<f64> {
    static MC_FN f64
    from(f64 x)
    {
        return x;
    }
};
template <> struct narrower<i64> {
    static MC_FN i64
    from(f64 x)
    {
        return saturate<i64>(x, -0x7FFFFFFFFFFFFFFF - 1, 0x1p63, 0x7FFFFFFFFFFFFC00);
    }
};
template <> struct narrower<i32> {
    static MC_FN i32
    from(f64 x)
    {
        return saturate<i32>(x, -0x7FFFFFFF - 1, 0x1p31, 0x7FFFFFFF);
    }
};
template <> struct narrower<i8> {
    static MC_FN i8
    from(f64 x)
    {
        return saturate<i8>(x, -128, 128, 127);
    }
};
template <> struct narrower<u8> {
    static MC_FN u8
    from(f64 x)
    {
        return saturate<u8>(x, 0, 256, 255);
    }
};
template <> struct narrower<bool> {
    static MC_FN bool
    from(f64 x)
    {
        return x != 0;
    }
};

template <typename X, typename Y>
MC_FN void
cast(const mc_args &a)
{
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= a.i[0]) return;
    arg<Y>(a, 1)[i] = narrower<Y>::from(widen(arg<const X>(a, 0)[i]));
}
