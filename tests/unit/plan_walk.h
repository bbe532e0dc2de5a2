/* plan_walk: walks the plan of a compiled model in the simplest way, one launch after another. Every buffer is fresh,
 * filled with NaN and followed by a page that must not be touched, so a kernel that reads what nobody wrote, or leaves
 * its buffer, is found. What compiles the model and runs one launch is cpu_walk.h or gpu_walk.h. */
#ifndef MC_TESTS_PLAN_WALK_H
#define MC_TESTS_PLAN_WALK_H

#include "codegen/ref/interp.h"
#include "runtime/abi.h"
#include "runtime/base/dtype.h"
#include "tests/support/messages.h"
#include "tests/support/poisoned.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum { WALK_MAX_THREADS = 16, WALK_MAX_ARGS = 256 };

typedef struct walk {
    mc_arena *arena;
    const moec_abi_model *abi;
    void *code;                                                                 /* of the backend, like the next two */
    void (*kernel)(const struct walk *w, uint32_t target, moec_kernel_args *a); /* a launch with these arguments */
    void (*close)(struct walk *w);
    void **weights, **states;
    int64_t syms[MC_MAX_SYMS];
    int64_t past, cache_cap;
    int n_threads; /* CPU, like the next line */
    void *scratch[WALK_MAX_THREADS];
    uint32_t order; /* GPU: of the threads of a block, see tests/gpu/emulate.h */
} walk;

static inline int64_t
walk_eval(const walk *w, const moec_abi_expr *e)
{
    int64_t v = e->mul;
    for (int i = 0; i < 8 && e->syms[i] != 0xFF; i++) {
        ck_assert_int_ge(w->syms[e->syms[i]], 0);
        v *= w->syms[e->syms[i]];
    }
    return v + e->add;
}

/* ---- weights --------------------------------------------------------------------------------------------------- */

typedef struct walk_source { /* where weights come from */
    mc_ref_weight_fn *fn;
    void *user;
} walk_source;

static inline mc_ref_tensor
walk_fetch(const moec_abi_weight *w, const char *path, walk_source source)
{
    mc_ref_weight_request r = {
        .path = mc_str_of(path), .role = mc_str_of(w->role), .dtype = (moec_dtype)w->dtype, .rank = (int)w->rank};
    mc_ref_tensor t;
    for (uint32_t i = 0; i < w->rank; i++) r.dims[i] = w->dims[i];
    ck_assert_msg(source.fn(source.user, &r, &t), "no weight %s", path);
    int64_t n = 1;
    for (uint32_t i = 0; i < w->rank; i++) n *= w->dims[i];
    ck_assert_msg(t.n == n, "weight %s has %lld elements, not %lld", path, (long long)t.n, (long long)n);
    return t;
}

static inline void *
walk_pack(const moec_abi_weight *w, walk_source source)
{
    moec_dtype dtype = (moec_dtype)w->dtype;
    mc_ref_tensor t = walk_fetch(w, w->path, source), t2 = t;
    if (w->layout == MOEC_ABI_ROWS || w->layout == MOEC_ABI_GRAD) {
        void *rows = mc_poisoned(t.n * (int64_t)moec_dtype_bytes(dtype));
        for (int64_t i = 0; i < t.n; i++) mc_store_elem(dtype, rows, (size_t)i, mc_ref_tensor_get(&t, i));
        return rows;
    }
    bool pair = w->layout == MOEC_ABI_PAIR_PANELS;
    if (pair) t2 = walk_fetch(w, w->path2, source);
    int64_t k = w->dims[w->rank - 1], n = w->dims[w->rank - 2], groups = t.n / (n * k);
    int64_t columns = pair ? w->nr / 2 : w->nr, panels = (n + columns - 1) / columns;
    void *out = mc_poisoned(groups * panels * k * w->nr * (int64_t)moec_dtype_bytes(dtype));
    for (int64_t i = 0; i < groups * panels * k * w->nr; i++) {
        int64_t lane = i % w->nr, at_k = i / w->nr % k, panel = i / w->nr / k % panels, group = i / w->nr / k / panels;
        int64_t column = panel * columns + lane % columns, at = (group * n + column) * k + at_k;
        const mc_ref_tensor *from = lane < columns ? &t : &t2;
        mc_store_elem(dtype, out, (size_t)i, column < n ? mc_ref_tensor_get(from, at) : 0);
    }
    return out;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static inline void
walk_fail(const mc_diags *d)
{
    mc_str text = mc_errors(d);
    if (!text.len) text = MC_STR("no diagnostic");
    ck_abort_msg("%.*s", MC_FMT(mc_str_slice(text, 0, 2000)));
}

/* The tables of weights and states, once abi is known. */
static inline void
walk_begin(walk *w, walk_source source)
{
    ck_assert_uint_eq(w->abi->magic, MOEC_ABI_MAGIC);
    w->weights = MC_NEW_N(w->arena, void *, w->abi->n_weights);
    w->states = MC_NEW_N(w->arena, void *, w->abi->n_states);
    for (uint32_t i = 0; i < w->abi->n_weights; i++) w->weights[i] = walk_pack(&w->abi->weights[i], source);
}

static inline void
walk_forget(walk *w)
{
    for (uint32_t i = 0; i < w->abi->n_states; i++) {
        mc_poisoned_free(w->states[i]);
        w->states[i] = NULL;
    }
    w->past = 0;
}

static inline void
walk_close(walk *w)
{
    walk_forget(w);
    for (uint32_t i = 0; i < w->abi->n_weights; i++) mc_poisoned_free(w->weights[i]);
    w->close(w);
    mc_arena_destroy(w->arena);
}

/* ---- running --------------------------------------------------------------------------------------------------- */

typedef struct walk_frame {
    const moec_abi_func *func;
    void **slots, **args;
    uint32_t weight_base, state_base;
} walk_frame;

static inline void *
walk_resolve(const walk *w, const walk_frame *f, const moec_abi_ref *r)
{
    char *p = NULL;
    switch ((moec_abi_place)r->place) {
    case MOEC_ABI_NULL: return NULL;
    case MOEC_ABI_SLOT: p = f->slots[r->index]; break;
    case MOEC_ABI_ARG: p = f->args[r->index]; break;
    case MOEC_ABI_WEIGHT: p = w->weights[f->weight_base + r->index]; break;
    case MOEC_ABI_STATE: p = w->states[f->state_base + r->index]; break;
    }
    return p + walk_eval(w, &r->offset);
}

static inline void
walk_launch(const walk *w, const walk_frame *f, const moec_abi_launch *l)
{
    moec_kernel_args a = {.n_threads = w->n_threads, .past = w->past, .cache_cap = w->cache_cap};
    for (uint32_t i = 0; i < l->n_refs; i++) a.ptr[i] = walk_resolve(w, f, &w->abi->refs[l->first_ref + i]);
    for (uint32_t i = 0; i < l->n_ints; i++) a.i[i] = walk_eval(w, &w->abi->exprs[l->first_int + i]);
    for (uint32_t i = 0; i < l->n_floats; i++) a.f[i] = w->abi->floats[l->first_float + i];
    w->kernel(w, l->target, &a);
}

static inline void
walk_func(const walk *w, uint32_t index, void **args, uint32_t weight_base, uint32_t state_base)
{
    const moec_abi_func *func = &w->abi->funcs[index];
    void **slots = calloc(func->n_slots + 1, sizeof *slots);
    walk_frame f = {func, slots, args, weight_base, state_base};
    for (uint32_t i = 0; i < func->n_slots; i++) {
        const moec_abi_slot *s = &w->abi->slots[func->first_slot + i];
        int64_t size = 0;
        for (uint32_t j = 0; j < s->n_exprs; j++) {
            int64_t n = walk_eval(w, &w->abi->exprs[s->first_expr + j]);
            if (n > size) size = n;
        }
        slots[i] = mc_poisoned(size);
    }
    for (uint32_t i = 0; i < func->n_launches; i++) {
        const moec_abi_launch *l = &w->abi->launches[func->first_launch + i];
        if (l->kind == MOEC_LAUNCH_KERNEL) {
            walk_launch(w, &f, l);
            continue;
        }
        void *inner[WALK_MAX_ARGS];
        ck_assert_uint_le(l->n_refs, WALK_MAX_ARGS);
        for (uint32_t j = 0; j < l->n_refs; j++) inner[j] = walk_resolve(w, &f, &w->abi->refs[l->first_ref + j]);
        walk_func(w, l->target, inner, weight_base + l->weight_base, state_base + l->state_base);
    }
    for (uint32_t i = 0; i < func->n_slots; i++) mc_poisoned_free(slots[i]);
    free(slots);
}

/* Symbols from the shapes of the inputs; C = past + S. Symbols set before keep their values. */
static inline void
walk_bind(walk *w, const mc_ref_tensor *inputs)
{
    int64_t n_new = 0;
    for (uint32_t i = 0; i < w->abi->n_inputs; i++) {
        const moec_abi_tensor *t = &w->abi->inputs[i];
        for (uint32_t d = 0; d < t->rank; d++) {
            if (t->dims[d].syms[0] == 0xFF || t->dims[d].syms[1] != 0xFF) continue;
            w->syms[t->dims[d].syms[0]] = (inputs[i].dims[d] - t->dims[d].add) / t->dims[d].mul;
        }
    }
    for (uint32_t i = 0; i < w->abi->n_syms; i++) {
        if (w->abi->syms[i].kind == 1) n_new = w->syms[i];
    }
    for (uint32_t i = 0; i < w->abi->n_syms; i++) {
        if (w->abi->syms[i].kind == 2) w->syms[i] = w->past + n_new;
    }
    ck_assert_int_le(w->past + n_new, w->cache_cap);
    int64_t batch = w->abi->batch_sym == UINT32_MAX ? 1 : w->syms[w->abi->batch_sym];
    for (uint32_t i = 0; i < w->abi->n_states && !w->states[i]; i++) {
        const moec_abi_state *s = &w->abi->states[i];
        int64_t n_bytes = s->bytes * batch * (s->kind == 0 ? w->cache_cap : 1);
        w->states[i] = mc_poisoned(n_bytes);
        if (s->kind == 1) memset(w->states[i], 0, (size_t)n_bytes);
    }
}

/* One step; outputs are allocated in `arena`. */
static inline void
walk_run(walk *w, const mc_ref_tensor *inputs, mc_arena *arena, mc_ref_tensor *outputs)
{
    void *args[WALK_MAX_ARGS];
    int64_t n_new = 0;
    walk_bind(w, inputs);
    for (uint32_t i = 0; i < w->abi->n_inputs; i++) {
        size_t n_bytes = (size_t)inputs[i].n * moec_dtype_bytes(inputs[i].dtype);
        args[i] = mc_poisoned((int64_t)n_bytes);
        if (n_bytes) memcpy(args[i], inputs[i].data, n_bytes);
    }
    for (uint32_t i = 0; i < w->abi->n_outputs; i++) {
        const moec_abi_tensor *t = &w->abi->outputs[i];
        int64_t dims[MC_MAX_RANK] = {0};
        for (uint32_t d = 0; d < t->rank; d++) dims[d] = walk_eval(w, &t->dims[d]);
        ck_assert(mc_ref_tensor_init(&outputs[i], (moec_dtype)t->dtype, dims, (int)t->rank, arena));
        args[w->abi->n_inputs + i] = mc_poisoned(outputs[i].n * (int64_t)moec_dtype_bytes((moec_dtype)t->dtype));
    }
    for (int t = 0; t < w->n_threads; t++) w->scratch[t] = mc_poisoned((int64_t)w->abi->scratch_bytes);
    walk_func(w, w->abi->entry, args, 0, 0);
    for (int t = 0; t < w->n_threads; t++) mc_poisoned_free(w->scratch[t]);
    for (uint32_t i = 0; i < w->abi->n_outputs; i++) {
        size_t n_bytes = (size_t)outputs[i].n * moec_dtype_bytes(outputs[i].dtype);
        if (n_bytes) memcpy(outputs[i].data, args[w->abi->n_inputs + i], n_bytes);
    }
    for (uint32_t i = 0; i < w->abi->n_inputs + w->abi->n_outputs; i++) mc_poisoned_free(args[i]);
    for (uint32_t i = 0; i < w->abi->n_syms; i++) {
        if (w->abi->syms[i].kind == 1) n_new = w->syms[i];
    }
    w->past += n_new;
}

#endif
