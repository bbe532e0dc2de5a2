/* Types and dimensions. Interning makes equal types the same pointer: a type is looked up by the bytes of its struct,
 * which is zeroed first so that padding never differs. */
#include "ir/ir.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "runtime/base/dtype.h"

/* The one form in which a dim is stored: constants in mul, unused symbols 0. */
static mc_dim
normal(mc_dim d)
{
    mc_dim out;
    memset(&out, 0, sizeof out);
    if (d.n_syms == 0 || d.mul == 0) {
        out.mul = (int64_t)((uint64_t)(d.n_syms == 0 ? d.mul : 0) + (uint64_t)d.add);
        return out;
    }
    out.mul = d.mul;
    out.add = d.add;
    out.n_syms = d.n_syms;
    for (int i = 0; i < d.n_syms; i++) {
        int j = i;
        for (; j > 0 && out.syms[j - 1] > d.syms[i]; j--) out.syms[j] = out.syms[j - 1];
        out.syms[j] = d.syms[i];
    }
    return out;
}

mc_dim
mc_dim_const(int64_t n)
{
    return normal((mc_dim){.mul = n});
}

mc_dim
mc_dim_sym(int sym)
{
    assert(sym >= 0 && sym < MC_MAX_SYMS);
    return normal((mc_dim){.mul = 1, .n_syms = 1, .syms = {(uint8_t)sym}});
}

bool
mc_dim_is_const(mc_dim d)
{
    return d.n_syms == 0 || d.mul == 0;
}

bool
mc_dim_eq(mc_dim a, mc_dim b)
{
    a = normal(a);
    b = normal(b);
    return a.mul == b.mul && a.add == b.add && a.n_syms == b.n_syms && memcmp(a.syms, b.syms, sizeof a.syms) == 0;
}

bool
mc_dim_mul(mc_dim a, mc_dim b, mc_dim *out)
{
    a = normal(a);
    b = normal(b);
    mc_dim d = {0};
    if (__builtin_mul_overflow(a.mul, b.mul, &d.mul)) return false;
    if ((a.add && b.n_syms) || (b.add && a.n_syms)) return false;
    if (a.n_syms + b.n_syms > MC_DIM_SYMS) return false;
    if (a.add && __builtin_mul_overflow(a.add, b.mul, &d.add)) return false;
    if (b.add && __builtin_mul_overflow(b.add, a.mul, &d.add)) return false;
    for (int i = 0; i < a.n_syms; i++) d.syms[d.n_syms++] = a.syms[i];
    for (int i = 0; i < b.n_syms; i++) d.syms[d.n_syms++] = b.syms[i];
    *out = normal(d);
    return true;
}

bool
mc_dim_div(mc_dim a, mc_dim b, mc_dim *out)
{
    a = normal(a);
    b = normal(b);
    if (b.mul <= 0 || a.mul % b.mul) return false;
    mc_dim d = {.mul = a.mul / b.mul};
    if (b.add) { /* only a multiple of the whole of b */
        int64_t add;
        bool same = a.n_syms == b.n_syms && memcmp(a.syms, b.syms, sizeof a.syms) == 0;
        if (!same || __builtin_mul_overflow(b.add, d.mul, &add) || add != a.add) return false;
        *out = normal(d);
        return true;
    }
    if (a.add && (b.n_syms || a.add % b.mul)) return false;
    d.add = a.add / b.mul;
    int j = 0;
    for (int i = 0; i < a.n_syms; i++) {
        if (j < b.n_syms && a.syms[i] == b.syms[j]) {
            j++;
        } else {
            d.syms[d.n_syms++] = a.syms[i];
        }
    }
    if (j < b.n_syms) return false;
    *out = normal(d);
    return true;
}

bool
mc_dims_product(const mc_dim *dims, int n, mc_dim *out)
{
    mc_dim product = mc_dim_const(1);
    for (int i = 0; i < n; i++) {
        if (!mc_dim_mul(product, dims[i], &product)) return false;
    }
    *out = product;
    return true;
}

int64_t
mc_dim_eval(mc_dim d, const int64_t *sym_values)
{
    int64_t value = d.mul;
    for (int i = 0; i < d.n_syms; i++) value *= sym_values[d.syms[i]];
    return value + d.add;
}

const mc_type *
mc_type_get(mc_module *m, moec_dtype dtype, const mc_dim *dims, int rank)
{
    assert(rank >= 0 && rank <= MC_MAX_RANK);
    mc_type t;
    memset(&t, 0, sizeof t);
    t.dtype = dtype;
    t.rank = (uint8_t)rank;
    for (int i = 0; i < rank; i++) {
        mc_dim d = normal(dims[i]);
        memcpy(&t.dims[i], &d, sizeof d);
    }
    mc_str key = {(const char *)&t, offsetof(mc_type, dims) + (size_t)rank * sizeof(mc_dim)};
    const mc_type *known = mc_map_get(&m->types, key);
    if (known) return known;
    mc_type *made = mc_arena_copy(m->arena, &t, sizeof t);
    key.data = (const char *)made;
    mc_map_set(&m->types, key, made);
    return made;
}

const mc_type *
mc_type_with_dtype(mc_module *m, const mc_type *t, moec_dtype dtype)
{
    return mc_type_get(m, dtype, t->dims, t->rank);
}

const mc_type *
mc_type_with_last(mc_module *m, const mc_type *t, mc_dim last)
{
    assert(t->rank >= 1);
    mc_dim dims[MC_MAX_RANK];
    memcpy(dims, t->dims, sizeof dims);
    dims[t->rank - 1] = last;
    return mc_type_get(m, t->dtype, dims, t->rank);
}

const mc_type *
mc_type_scalar(mc_module *m, moec_dtype dtype)
{
    return mc_type_get(m, dtype, NULL, 0);
}

mc_dim
mc_type_last(const mc_type *t)
{
    assert(t->rank >= 1);
    return t->dims[t->rank - 1];
}

bool
mc_type_rows(const mc_type *t, mc_dim *out)
{
    return t->rank >= 1 && mc_dims_product(t->dims, t->rank - 1, out);
}

bool
mc_type_is_float(const mc_type *t)
{
    return mc_dtype_is_float(t->dtype);
}

int
mc_symbol_get(mc_module *m, mc_str name)
{
    for (int i = 0; i < m->n_syms; i++) {
        if (mc_str_eq(m->syms[i].name, name)) return i;
    }
    if (m->n_syms == MC_MAX_SYMS) return -1;
    m->syms[m->n_syms] = (mc_symbol){.name = mc_str_dup(m->arena, name), .lo = 1};
    return m->n_syms++;
}

void
mc_dim_print(const mc_module *m, mc_dim d, mc_buf *out)
{
    if (mc_dim_is_const(d)) {
        mc_buf_printf(out, "%lld", (long long)normal(d).mul);
        return;
    }
    if (d.mul != 1) mc_buf_printf(out, "%lld*", (long long)d.mul);
    for (int i = 0; i < d.n_syms; i++) {
        if (i) mc_buf_putc(out, '*');
        if (d.syms[i] < m->n_syms) {
            mc_buf_str(out, m->syms[d.syms[i]].name);
        } else {
            mc_buf_printf(out, "?%d", d.syms[i]);
        }
    }
    unsigned long long size = d.add < 0 ? 0 - (unsigned long long)d.add : (unsigned long long)d.add;
    if (d.add) mc_buf_printf(out, " %c %llu", d.add < 0 ? '-' : '+', size);
}

void
mc_type_print(const mc_module *m, const mc_type *t, mc_buf *out)
{
    mc_buf_puts(out, moec_dtype_name(t->dtype));
    if (t->rank == 0) return;
    mc_buf_putc(out, '[');
    for (int i = 0; i < t->rank; i++) {
        if (i) mc_buf_puts(out, ", ");
        mc_dim_print(m, t->dims[i], out);
    }
    mc_buf_putc(out, ']');
}

mc_str
mc_type_text(const mc_module *m, const mc_type *t, mc_arena *arena)
{
    mc_buf text = {0};
    mc_type_print(m, t, &text);
    mc_str copy = mc_str_dup(arena, mc_buf_view(&text));
    mc_buf_fini(&text);
    return copy;
}
