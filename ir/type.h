/* type: element type + shape. Types are interned in their module: equal types are the same pointer.
 * A dimension is mul * (product of up to three symbols) + add; symbols get their values at run time. The empty product
 * is 1, and a constant n is always stored as mul = n, add = 0. */
#ifndef MC_IR_TYPE_H
#define MC_IR_TYPE_H

#include "runtime/base/str.h"

typedef struct mc_module mc_module;

enum { MC_MAX_RANK = 6, MC_DIM_SYMS = 3, MC_MAX_SYMS = 32 };

typedef struct mc_dim {
    int64_t mul, add;
    uint8_t n_syms;
    uint8_t syms[MC_DIM_SYMS]; /* indices into module->syms, ascending; a symbol may occur twice */
} mc_dim;

typedef struct mc_type {
    moec_dtype dtype;
    uint8_t rank;
    mc_dim dims[MC_MAX_RANK];
} mc_type;

/* A run-time dimension, `dim S in 1..32768`. hi = 0: unbounded. */
typedef struct mc_symbol {
    mc_str name;
    int64_t lo, hi;
} mc_symbol;

mc_dim mc_dim_const(int64_t n);
mc_dim mc_dim_sym(int sym);
bool mc_dim_is_const(mc_dim d);
bool mc_dim_eq(mc_dim a, mc_dim b);
/* False when the product leaves the normal form (more than three symbols, or add != 0 with a symbol) or overflows. */
bool mc_dim_mul(mc_dim a, mc_dim b, mc_dim *out);
/* a / b when it is exact for every value of the symbols. */
bool mc_dim_div(mc_dim a, mc_dim b, mc_dim *out);
/* The number of elements of dims[0..n-1]. */
bool mc_dims_product(const mc_dim *dims, int n, mc_dim *out);
int64_t mc_dim_eval(mc_dim d, const int64_t *sym_values);

const mc_type *mc_type_get(mc_module *m, moec_dtype dtype, const mc_dim *dims, int rank);
const mc_type *mc_type_with_dtype(mc_module *m, const mc_type *t, moec_dtype dtype);
/* The dims but the last, times `last` (rank at least 1). */
const mc_type *mc_type_with_last(mc_module *m, const mc_type *t, mc_dim last);
const mc_type *mc_type_scalar(mc_module *m, moec_dtype dtype);
mc_dim mc_type_last(const mc_type *t);
bool mc_type_rows(const mc_type *t, mc_dim *out); /* product of all dims but the last */
bool mc_type_is_float(const mc_type *t);

/* Finds or adds a symbol; -1 when the table is full. */
int mc_symbol_get(mc_module *m, mc_str name);

/* "f32[B, S, 4096]", "[2*B*S]": as in .moir. */
void mc_type_print(const mc_module *m, const mc_type *t, mc_buf *out);
void mc_dim_print(const mc_module *m, mc_dim d, mc_buf *out);
mc_str mc_type_text(const mc_module *m, const mc_type *t, mc_arena *arena);

#endif
