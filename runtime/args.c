/* args: see args.h. A dim is one equation, mul * product + add: it gives a symbol its value when all others have one,
 * so going over the dims until nothing moves finds every symbol that follows. */
#include "runtime/args.h"

#include <string.h>

moec_status
mc_sizes_set(const mc_sizes *s, uint32_t sym, int64_t value, mc_fault *error)
{
    const moec_abi_sym *d = &s->abi->syms[sym];
    if (d->hi > 0 && (value < d->lo || value > d->hi))
        return mc_fail(error, MOEC_ERR_RANGE, "%s = %lld: the model allows %lld..%lld", d->name, (long long)value,
                       (long long)d->lo, (long long)d->hi);
    if (value < d->lo || value < 0)
        return mc_fail(error, MOEC_ERR_RANGE, "%s = %lld: the model allows %lld and more", d->name, (long long)value,
                       (long long)d->lo);
    if (s->max && value > s->max[sym])
        return mc_fail(error, MOEC_ERR_RANGE, "%s = %lld: this session was made for at most %lld", d->name,
                       (long long)value, (long long)s->max[sym]);
    s->syms[sym] = value;
    return MOEC_OK;
}

size_t
mc_args_find(const moec_tensor *tensors, size_t n, const char *name, size_t index)
{
    for (size_t i = 0; i < n; i++)
        if (tensors[i].name && strcmp(tensors[i].name, name) == 0) return i;
    return index < n && !tensors[index].name ? index : n;
}

moec_status
mc_args_names(const moec_tensor *tensors, size_t n, const moec_abi_tensor *table, uint32_t n_table, const char *kind,
              mc_fault *error)
{
    for (size_t i = 0; i < n; i++) {
        bool known = !tensors[i].name && i < n_table;
        for (uint32_t j = 0; j < n_table && tensors[i].name; j++)
            known = known || strcmp(tensors[i].name, table[j].name) == 0;
        if (!known)
            return mc_fail(error, MOEC_ERR_ARGUMENT, "the model has no %s named %s", kind,
                           tensors[i].name ? tensors[i].name : "(null)");
    }
    return MOEC_OK;
}

bool
mc_args_bytes(const moec_tensor *t, size_t *out)
{
    size_t n = moec_dtype_bytes(t->dtype);
    for (uint32_t i = 0; i < t->rank; i++)
        if (t->dims[i] < 0 || __builtin_mul_overflow(n, (size_t)t->dims[i], &n)) return false;
    *out = n;
    return true;
}

moec_status
mc_args_input(const moec_tensor *t, const moec_abi_tensor *want, mc_fault *error)
{
    size_t n_bytes = 0;
    if (t->dtype != (moec_dtype)want->dtype)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "input %s is %s, not %s", want->name,
                       moec_dtype_name((moec_dtype)want->dtype), moec_dtype_name(t->dtype));
    if (t->rank != want->rank)
        return mc_fail(error, MOEC_ERR_ARGUMENT, "input %s has %u dimensions, not %u", want->name, want->rank, t->rank);
    if (!mc_args_bytes(t, &n_bytes) || n_bytes > t->n_bytes || (!t->data && n_bytes))
        return mc_fail(error, MOEC_ERR_ARGUMENT, "input %s: %zu bytes are fewer than its dimensions need", want->name,
                       t->n_bytes);
    return MOEC_OK;
}

/* One equation, dim = mul * product + add: solves it when exactly one of its symbols has no value yet. */
static moec_status
solve_dim(const mc_sizes *s, const moec_abi_tensor *want, const moec_abi_expr *e, int64_t dim, bool *progress,
          mc_fault *error)
{
    int unknown = -1, n_unknown = 0;
    int64_t factor = e->mul, rest;
    for (int i = 0; i < 8 && e->syms[i] != MC_NO_SYM; i++) {
        int64_t v = s->syms[e->syms[i]];
        if (v < 0) {
            unknown = e->syms[i];
            n_unknown++;
        } else if (__builtin_mul_overflow(factor, v, &factor)) {
            factor = 0;
        }
    }
    if (n_unknown != 1 || factor == 0) return MOEC_OK;
    char text[64];
    mc_expr_text(s->abi, e, text, sizeof text);
    if (__builtin_sub_overflow(dim, e->add, &rest) || rest % factor != 0)
        return mc_fail(error, MOEC_ERR_MISMATCH, "input %s: %lld is no value of %s", want->name, (long long)dim, text);
    *progress = true;
    return mc_sizes_set(s, (uint32_t)unknown, rest / factor, error);
}

moec_status
mc_sizes_solve(const mc_sizes *s, const moec_tensor *const *inputs, mc_fault *error)
{
    const moec_abi_model *m = s->abi;
    for (uint32_t i = 0; i < m->n_syms; i++) s->syms[i] = -1;
    for (bool progress = true; progress;) {
        progress = false;
        for (uint32_t i = 0; i < m->n_inputs; i++)
            for (uint32_t d = 0; d < m->inputs[i].rank; d++) {
                moec_status st =
                    solve_dim(s, &m->inputs[i], &m->inputs[i].dims[d], inputs[i]->dims[d], &progress, error);
                if (st != MOEC_OK) return st;
            }
    }
    for (uint32_t i = 0; i < m->n_inputs; i++)
        for (uint32_t d = 0; d < m->inputs[i].rank; d++) {
            int64_t want;
            char text[64];
            mc_expr_text(m, &m->inputs[i].dims[d], text, sizeof text);
            if (!mc_expr_eval(&m->inputs[i].dims[d], s->syms, &want))
                return mc_fail(error, MOEC_ERR_MISMATCH, "input %s: %s is not determined", m->inputs[i].name, text);
            bool fixed = m->inputs[i].dims[d].syms[0] == 0xFF;
            if (want != inputs[i]->dims[d] && fixed)
                return mc_fail(error, MOEC_ERR_MISMATCH, "input %s: dimension %u is %lld and must be %lld",
                               m->inputs[i].name, d, (long long)inputs[i]->dims[d], (long long)want);
            if (want != inputs[i]->dims[d])
                return mc_fail(error, MOEC_ERR_MISMATCH, "input %s: dimension %u is %lld, but %s is %lld",
                               m->inputs[i].name, d, (long long)inputs[i]->dims[d], text, (long long)want);
        }
    return MOEC_OK;
}

moec_status
mc_args_ids(const moec_tensor *t, const moec_abi_tensor *want, mc_fault *error)
{
    size_t n = 0;
    if (!want->limit || !mc_args_bytes(t, &n)) return MOEC_OK;
    n /= moec_dtype_bytes(t->dtype);
    for (size_t i = 0; i < n; i++) {
        int64_t v;
        if (t->dtype == MOEC_I32)
            v = ((const int32_t *)t->data)[i];
        else if (t->dtype == MOEC_I64)
            v = ((const int64_t *)t->data)[i];
        else
            return MOEC_OK;
        if (v >= 0 && v < want->limit) continue;
        int64_t row = t->rank ? t->dims[t->rank - 1] : 1;
        return mc_fail(error, MOEC_ERR_RANGE, "id %lld at position %lld of row %lld of %s is outside 0..%lld",
                       (long long)v, (long long)(i % (size_t)row), (long long)(i / (size_t)row), want->name,
                       (long long)want->limit - 1);
    }
    return MOEC_OK;
}

bool
mc_args_shape(const moec_abi_tensor *t, const int64_t *syms, int64_t *out_dims, size_t *out_bytes)
{
    size_t n = moec_dtype_bytes((moec_dtype)t->dtype);
    for (uint32_t i = 0; i < t->rank; i++) {
        if (!mc_expr_eval(&t->dims[i], syms, &out_dims[i]) || out_dims[i] < 0) return false;
        if (__builtin_mul_overflow(n, (size_t)out_dims[i], &n)) return false;
    }
    *out_bytes = n;
    return n <= SIZE_MAX / 4;
}

moec_status
mc_args_inputs(const mc_sizes *s, const moec_tensor *inputs, size_t n_inputs, const moec_tensor **out, mc_fault *error)
{
    const moec_abi_model *m = s->abi;
    moec_status status = mc_args_names(inputs, n_inputs, m->inputs, m->n_inputs, "input", error);
    for (uint32_t i = 0; status == MOEC_OK && i < m->n_inputs; i++) {
        size_t found = mc_args_find(inputs, n_inputs, m->inputs[i].name, i);
        if (found == n_inputs) return mc_fail(error, MOEC_ERR_ARGUMENT, "input %s is missing", m->inputs[i].name);
        out[i] = &inputs[found];
        status = mc_args_input(out[i], &m->inputs[i], error);
    }
    return status == MOEC_OK ? mc_sizes_solve(s, out, error) : status;
}
