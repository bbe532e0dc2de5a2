/* dtype: element types and exact conversions. One table (dtype.def). */
#ifndef MC_BASE_DTYPE_H
#define MC_BASE_DTYPE_H

#include "moec/base.h"
#include "runtime/base/str.h"

bool mc_dtype_is_float(moec_dtype t);
moec_dtype mc_dtype_parse(mc_str text);            /* "bf16"; MOEC_DTYPE_NONE when unknown */
moec_dtype mc_dtype_from_safetensors(mc_str text); /* "BF16"; MOEC_DTYPE_NONE when unknown */
const char *mc_dtype_safetensors_name(moec_dtype t);

/* Widening is exact. Narrowing rounds to nearest, ties to even; NaN stays NaN; overflow of bf16, f16 and e5m2 gives
 * infinity, of e4m3 (which has none) its greatest finite value 448, as the OCP FP8 saturating conversion does. */
float mc_bf16_to_f32(uint16_t bits);
uint16_t mc_f32_to_bf16(float x);
float mc_f16_to_f32(uint16_t bits);
uint16_t mc_f32_to_f16(float x);
float mc_f8e4m3_to_f32(uint8_t bits); /* e4m3fn: S.1111.111 is NaN, no infinities */
uint8_t mc_f32_to_f8e4m3(float x);
float mc_f8e5m2_to_f32(uint8_t bits);
uint8_t mc_f32_to_f8e5m2(float x);

/* Element i of an array of dtype t, as a double (integers too); and the inverse. */
double mc_load_elem(moec_dtype t, const void *array, size_t i);
void mc_store_elem(moec_dtype t, void *array, size_t i, double value);

#endif
