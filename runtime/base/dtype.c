#include "runtime/base/dtype.h"

#include <math.h>
#include <string.h>

typedef struct dtype_info {
    const char *text, *safetensors;
    size_t n_bytes;
    bool is_float;
} dtype_info;

#define FLOAT true
#define INT false
static const dtype_info infos[] = {
    [MOEC_DTYPE_NONE] = {"none", "", 0, false},
#define MC_DTYPE(id, text, st, bytes, kind) [id] = {text, st, bytes, kind},
#include "runtime/base/dtype.def"
#undef MC_DTYPE
};
#undef FLOAT
#undef INT
enum { N_DTYPES = sizeof infos / sizeof infos[0] };

const char *
moec_dtype_name(moec_dtype dtype)
{
    return (unsigned)dtype < N_DTYPES ? infos[dtype].text : "unknown";
}

size_t
moec_dtype_bytes(moec_dtype dtype)
{
    return (unsigned)dtype < N_DTYPES ? infos[dtype].n_bytes : 0;
}

bool
mc_dtype_is_float(moec_dtype t)
{
    return (unsigned)t < N_DTYPES && infos[t].is_float;
}

moec_dtype
mc_dtype_parse(mc_str text)
{
    for (int t = 1; t < N_DTYPES; t++)
        if (mc_str_is(text, infos[t].text)) return (moec_dtype)t;
    return MOEC_DTYPE_NONE;
}

moec_dtype
mc_dtype_from_safetensors(mc_str text)
{
    for (int t = 1; t < N_DTYPES; t++)
        if (mc_str_is(text, infos[t].safetensors)) return (moec_dtype)t;
    return MOEC_DTYPE_NONE;
}

const char *
mc_dtype_safetensors_name(moec_dtype t)
{
    return (unsigned)t < N_DTYPES ? infos[t].safetensors : "";
}

static uint32_t
f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static float
bits_f32(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

float
mc_bf16_to_f32(uint16_t bits)
{
    return bits_f32((uint32_t)bits << 16);
}

uint16_t
mc_f32_to_bf16(float x)
{
    uint32_t u = f32_bits(x);
    if (isnan(x)) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

/* A small float format: widening by value, narrowing by rounding to its grid. Slow and plain: used when packing
 * and in the reference interpreter, never per token. */
typedef struct small_format {
    int mantissa_bits, bias, max_biased; /* max_biased: greatest exponent field of a finite number */
    float max_finite;
    bool has_infinity;
} small_format;

static const small_format F16 = {10, 15, 30, 65504.0f, true};
static const small_format E4M3 = {3, 7, 15, 448.0f, false};
static const small_format E5M2 = {2, 15, 30, 57344.0f, true};

static float
widen(small_format f, uint32_t magnitude)
{
    int field = (int)(magnitude >> f.mantissa_bits);
    uint32_t mantissa = magnitude & ((1u << f.mantissa_bits) - 1);
    if (field == 0) return ldexpf((float)mantissa, 1 - f.bias - f.mantissa_bits);
    return ldexpf((float)(mantissa | 1u << f.mantissa_bits), field - f.bias - f.mantissa_bits);
}

static uint32_t
narrow(small_format f, float magnitude, uint32_t overflow)
{
    int e;
    if (magnitude == 0) return 0;
    frexpf(magnitude, &e); /* magnitude = m * 2^e, 0.5 <= m < 1 */
    int exponent = e - 1 < 1 - f.bias ? 1 - f.bias : e - 1;
    float grid = nearbyintf(ldexpf(magnitude, f.mantissa_bits - exponent)); /* ties to even in the default mode */
    uint32_t q = (uint32_t)grid;
    if (q >> (f.mantissa_bits + 1)) {
        q >>= 1;
        exponent++;
    }
    if (ldexpf((float)q, exponent - f.mantissa_bits) > f.max_finite) return overflow;
    if (!(q >> f.mantissa_bits)) return q; /* subnormal */
    return (uint32_t)(exponent + f.bias) << f.mantissa_bits | (q & ((1u << f.mantissa_bits) - 1));
}

float
mc_f16_to_f32(uint16_t bits)
{
    uint32_t magnitude = bits & 0x7FFF;
    float x = magnitude > 0x7C00 ? NAN : magnitude == 0x7C00 ? INFINITY : widen(F16, magnitude);
    return bits & 0x8000 ? -x : x;
}

uint16_t
mc_f32_to_f16(float x)
{
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return sign | 0x7E00;
    if (isinf(x)) return sign | 0x7C00;
    return sign | (uint16_t)narrow(F16, fabsf(x), 0x7C00);
}

float
mc_f8e4m3_to_f32(uint8_t bits)
{
    uint32_t magnitude = bits & 0x7F;
    float x = magnitude == 0x7F ? NAN : widen(E4M3, magnitude);
    return bits & 0x80 ? -x : x;
}

uint8_t
mc_f32_to_f8e4m3(float x)
{
    uint8_t sign = signbit(x) ? 0x80 : 0;
    if (isnan(x)) return sign | 0x7F;
    if (isinf(x)) return sign | 0x7E;
    return sign | (uint8_t)narrow(E4M3, fabsf(x), 0x7E);
}

float
mc_f8e5m2_to_f32(uint8_t bits)
{
    uint32_t magnitude = bits & 0x7F;
    float x = magnitude > 0x7C ? NAN : magnitude == 0x7C ? INFINITY : widen(E5M2, magnitude);
    return bits & 0x80 ? -x : x;
}

uint8_t
mc_f32_to_f8e5m2(float x)
{
    uint8_t sign = signbit(x) ? 0x80 : 0;
    if (isnan(x)) return sign | 0x7E;
    if (isinf(x)) return sign | 0x7C;
    return sign | (uint8_t)narrow(E5M2, fabsf(x), 0x7C);
}

double
mc_load_elem(moec_dtype t, const void *array, size_t i)
{
    switch (t) {
    case MOEC_F32: return ((const float *)array)[i];
    case MOEC_BF16: return mc_bf16_to_f32(((const uint16_t *)array)[i]);
    case MOEC_F16: return mc_f16_to_f32(((const uint16_t *)array)[i]);
    case MOEC_F8E4M3: return mc_f8e4m3_to_f32(((const uint8_t *)array)[i]);
    case MOEC_F8E5M2: return mc_f8e5m2_to_f32(((const uint8_t *)array)[i]);
    case MOEC_F64: return ((const double *)array)[i];
    case MOEC_I32: return ((const int32_t *)array)[i];
    case MOEC_I64: return (double)((const int64_t *)array)[i];
    case MOEC_I8: return ((const int8_t *)array)[i];
    case MOEC_U8:
    case MOEC_BOOL: return ((const uint8_t *)array)[i];
    case MOEC_DTYPE_NONE: break;
    }
    return 0;
}

void
mc_store_elem(moec_dtype t, void *array, size_t i, double value)
{
    switch (t) {
    case MOEC_F32: ((float *)array)[i] = (float)value; return;
    case MOEC_BF16: ((uint16_t *)array)[i] = mc_f32_to_bf16((float)value); return;
    case MOEC_F16: ((uint16_t *)array)[i] = mc_f32_to_f16((float)value); return;
    case MOEC_F8E4M3: ((uint8_t *)array)[i] = mc_f32_to_f8e4m3((float)value); return;
    case MOEC_F8E5M2: ((uint8_t *)array)[i] = mc_f32_to_f8e5m2((float)value); return;
    case MOEC_F64: ((double *)array)[i] = value; return;
    case MOEC_I32: ((int32_t *)array)[i] = (int32_t)value; return;
    case MOEC_I64: ((int64_t *)array)[i] = (int64_t)value; return;
    case MOEC_I8: ((int8_t *)array)[i] = (int8_t)value; return;
    case MOEC_U8:
    case MOEC_BOOL: ((uint8_t *)array)[i] = (uint8_t)value; return;
    case MOEC_DTYPE_NONE: return;
    }
}
