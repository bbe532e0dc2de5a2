/* exec: see exec.h. The hot loop is walk(): nothing in it allocates, locks or evaluates an expression. CPUs and
 * GPUs differ in what they do with a launch. */
#include "runtime/exec.h"

#include "runtime/base/clock.h"

#include <stdlib.h>
#include <string.h>

enum { SLOT_ALIGN = 64 };

/* In the tables: an expression without a value. Tables are shared by all functions, so one that no call reaches may
 * name a dimension that has none; only what is reached must have a value. */
#define NO_VALUE INT64_MIN

/* One array after another, each of 8-byte elements. */
size_t
mc_exec_table_bytes(const moec_abi_model *m)
{
    return 8 * (2 * (size_t)m->n_syms + 2 * (size_t)m->n_exprs + m->n_refs + m->n_slots + 2 * (size_t)m->n_funcs +
                m->n_states + 1);
}

static void *
take(unsigned char **at, size_t n)
{
    void *p = *at;
    *at += 8 * n;
    return p;
}

void
mc_exec_place(mc_exec *x, const moec_abi_model *abi, mc_pool *pool, void *memory)
{
    unsigned char *at = memory;
    memset(memory, 0, mc_exec_table_bytes(abi));
    *x = (mc_exec){.abi = abi, .pool = pool};
    x->syms = take(&at, abi->n_syms);
    x->bounds = take(&at, abi->n_syms);
    x->expr_values = take(&at, abi->n_exprs);
    x->late = take(&at, abi->n_exprs);
    x->ref_offsets = take(&at, abi->n_refs);
    x->slot_offsets = take(&at, abi->n_slots);
    x->frame_bytes = take(&at, abi->n_funcs);
    x->deep_bytes = take(&at, abi->n_funcs);
    x->states = take(&at, abi->n_states);
}

moec_status
mc_exec_init(mc_exec *x, const moec_abi_model *abi, mc_pool *pool, bool profile, mc_fault *error)
{
    void *tables = malloc(mc_exec_table_bytes(abi));
    *x = (mc_exec){0};
    if (!tables) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    mc_exec_place(x, abi, pool, tables);
    x->tables = tables;
    if (!profile) return MOEC_OK;
    x->launch_seconds = calloc((size_t)abi->n_launches + 1, sizeof *x->launch_seconds);
    x->launch_counts = calloc((size_t)abi->n_launches + 1, sizeof *x->launch_counts);
    if (x->launch_seconds && x->launch_counts) return MOEC_OK;
    mc_exec_fini(x);
    return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
}

void
mc_exec_fini(mc_exec *x)
{
    free(x->tables);
    free(x->launch_seconds);
    free(x->launch_counts);
    *x = (mc_exec){0};
}

static moec_status
size_failure(mc_fault *error)
{
    return mc_fail(error, MOEC_ERR_RANGE,
                   "the plan cannot be laid out for these sizes: a buffer is too large, or a dimension has no value");
}

static moec_status
layout_frame(mc_exec *x, uint32_t func, mc_fault *error)
{
    const moec_abi_func *f = &x->abi->funcs[func];
    int64_t total = 0;
    for (uint32_t i = 0; i < f->n_slots; i++) {
        const moec_abi_slot *slot = &x->abi->slots[f->first_slot + i];
        int64_t size = 0;
        for (uint32_t j = 0; j < slot->n_exprs; j++) {
            int64_t v = x->expr_values[slot->first_expr + j];
            if (v < 0) return size_failure(error);
            if (v > size) size = v;
        }
        x->slot_offsets[f->first_slot + i] = total;
        if (size > INT64_MAX - SLOT_ALIGN ||
            __builtin_add_overflow(total, (size + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN, &total))
            return size_failure(error);
    }
    x->frame_bytes[func] = total;
    return MOEC_OK;
}

static moec_status
check_values(const mc_exec *x, const moec_abi_launch *l, mc_fault *error)
{
    for (uint32_t i = 0; i < l->n_refs; i++)
        if (x->ref_offsets[l->first_ref + i] == NO_VALUE) return size_failure(error);
    for (uint32_t i = 0; i < l->n_ints; i++)
        if (x->expr_values[l->first_int + i] == NO_VALUE) return size_failure(error);
    return MOEC_OK;
}

/* Depth is bounded by mc_model_check. */
static moec_status
measure_depth(mc_exec *x, uint32_t func, mc_fault *error)
{
    const moec_abi_func *f = &x->abi->funcs[func];
    int64_t deepest = 0;
    moec_status s = layout_frame(x, func, error);
    if (s != MOEC_OK) return s;
    for (uint32_t i = 0; i < f->n_launches; i++) {
        const moec_abi_launch *l = &x->abi->launches[f->first_launch + i];
        s = check_values(x, l, error);
        if (s != MOEC_OK) return s;
        if (l->kind != MOEC_LAUNCH_CALL) continue;
        if (x->deep_bytes[l->target] < 0) s = measure_depth(x, l->target, error);
        if (s != MOEC_OK) return s;
        if (x->deep_bytes[l->target] > deepest) deepest = x->deep_bytes[l->target];
    }
    if (__builtin_add_overflow(deepest, x->frame_bytes[func], &x->deep_bytes[func])) return size_failure(error);
    return MOEC_OK;
}

/* Symbols that launches set count as their bounds until then: so memory is laid out. */
static moec_status
prepare_bounds(mc_exec *x, mc_fault *error)
{
    const moec_abi_model *m = x->abi;
    for (uint32_t i = 0; m->ep && i < m->n_syms; i++) {
        if (m->syms[i].kind != 4) continue;
        if (!x->bounds_are_fixed && !mc_expr_eval(&m->exprs[m->syms[i].bound], x->syms, &x->bounds[i]))
            return size_failure(error);
    }
    x->n_late = 0;
    for (uint32_t i = 0; m->ep && i < m->n_syms; i++)
        if (m->syms[i].kind == 4) x->syms[i] = x->bounds[i];
    for (uint32_t i = 0; m->ep && i < m->n_exprs; i++) {
        bool late = false;
        for (int k = 0; k < 8 && m->exprs[i].syms[k] != MC_NO_SYM; k++)
            late = late || m->syms[m->exprs[i].syms[k]].kind == 4;
        if (late) x->late[x->n_late++] = i;
    }
    return MOEC_OK;
}

moec_status
mc_exec_prepare(mc_exec *x, uint32_t func, size_t *out_bytes, mc_fault *error)
{
    const moec_abi_model *m = x->abi;
    moec_status s = prepare_bounds(x, error);
    if (s != MOEC_OK) return s;
    for (uint32_t i = 0; i < m->n_exprs; i++)
        if (!mc_expr_eval(&m->exprs[i], x->syms, &x->expr_values[i])) x->expr_values[i] = NO_VALUE;
    for (uint32_t i = 0; i < m->n_refs; i++)
        if (!mc_expr_eval(&m->refs[i].offset, x->syms, &x->ref_offsets[i])) x->ref_offsets[i] = NO_VALUE;
    for (uint32_t i = 0; i < m->n_funcs; i++) x->deep_bytes[i] = -1;
    s = measure_depth(x, func, error);
    if (s == MOEC_OK) *out_bytes = (size_t)x->deep_bytes[func];
    return s;
}

typedef struct step {
    mc_exec *x;
    uint32_t func, weight_base;
    void *const *args;
} step;

/* Where a launch of this frame finds things. */
typedef struct frame {
    const moec_abi_func *func;
    unsigned char *base;
    void *const *args;
    uint32_t weight_base, state_base;
} frame;

static void *
resolve(const mc_exec *x, const frame *f, uint32_t ref)
{
    const moec_abi_ref *r = &x->abi->refs[ref];
    unsigned char *p = NULL;
    switch ((moec_abi_place)r->place) {
    case MOEC_ABI_NULL: return NULL;
    case MOEC_ABI_SLOT: p = f->base + x->slot_offsets[f->func->first_slot + r->index]; break;
    case MOEC_ABI_ARG: p = f->args[r->index]; break;
    case MOEC_ABI_WEIGHT: p = x->weights[f->weight_base + r->index]; break;
    case MOEC_ABI_STATE: p = x->states[f->state_base + r->index]; break;
    }
    return p ? p + x->ref_offsets[ref] : NULL;
}

/* ---- the walk --------------------------------------------------------------------------------------------------- */

typedef struct walker {
    mc_exec *x;
    mc_exec_visit_fn *visit;
    void *context;
    moec_kernel_args *a;
} walker;

static bool
visit_launch(const walker *w, const frame *f, uint32_t index)
{
    const mc_exec *x = w->x;
    const moec_abi_launch *l = &x->abi->launches[index];
    for (uint32_t i = 0; i < l->n_refs; i++) w->a->ptr[i] = resolve(x, f, l->first_ref + i);
    memcpy(w->a->i, x->expr_values + l->first_int, l->n_ints * sizeof *w->a->i);
    if (l->n_floats) memcpy(w->a->f, x->abi->floats + l->first_float, l->n_floats * sizeof *w->a->f);
    return w->visit(w->context, index, w->a);
}

static bool
walk(const walker *w, const frame *f)
{
    const mc_exec *x = w->x;
    for (uint32_t i = 0; i < f->func->n_launches; i++) {
        uint32_t index = f->func->first_launch + i;
        const moec_abi_launch *l = &x->abi->launches[index];
        if (l->kind != MOEC_LAUNCH_CALL) {
            if (!visit_launch(w, f, index)) return false;
            continue;
        }
        void *args[MC_MAX_CALL_ARGS];
        for (uint32_t j = 0; j < l->n_refs; j++) args[j] = resolve(x, f, l->first_ref + j);
        frame callee = {.func = &x->abi->funcs[l->target],
                        .base = f->base + x->frame_bytes[f->func - x->abi->funcs],
                        .args = args,
                        .weight_base = f->weight_base + l->weight_base,
                        .state_base = f->state_base + l->state_base};
        if (!walk(w, &callee)) return false;
    }
    return true;
}

static bool
walk_from(const walker *w, uint32_t func, uint32_t weight_base, void *const *args)
{
    frame entry = {.func = &w->x->abi->funcs[func], .base = w->x->slab, .args = args, .weight_base = weight_base};
    return walk(w, &entry);
}

bool
mc_exec_visit(mc_exec *x, uint32_t func, uint32_t weight_base, void *const *args, mc_exec_visit_fn *visit,
              void *context)
{
    moec_kernel_args a = {0};
    walker w = {x, visit, context, &a};
    return walk_from(&w, func, weight_base, args);
}

/* ---- on a CPU --------------------------------------------------------------------------------------------------- */

/* Between ranks one thread talks, when all have come: what it sends must be complete, what it sets is read by nobody.
 */
static bool
run_comm(mc_exec *x, const moec_abi_launch *l, const moec_kernel_args *a)
{
    bool changed = false;
    if (x->pool) mc_pool_barrier(x->pool);
    if (a->thread == 0) {
        x->comm_status = mc_comm_walk_launch(x->comm, l, a, x->syms, x->bounds, &changed, x->comm_error);
        for (uint32_t i = 0; changed && i < x->n_late; i++) /* fits: it did at the bounds */
            mc_expr_eval(&x->abi->exprs[x->late[i]], x->syms, &x->expr_values[x->late[i]]);
    }
    if (x->pool) mc_pool_barrier(x->pool);
    return x->comm_status == MOEC_OK;
}

static bool
run_launch(void *context, uint32_t index, moec_kernel_args *a)
{
    mc_exec *x = context;
    const moec_abi_launch *l = &x->abi->launches[index];
    bool timed = x->launch_seconds && a->thread == 0, good = true;
    double begin = timed ? mc_seconds() : 0;
    if (l->kind == MOEC_LAUNCH_COMM) {
        good = run_comm(x, l, a);
    } else {
        x->abi->kernels[l->target](a);
        if (x->pool && !(l->flags & MOEC_LAUNCH_NO_BARRIER)) mc_pool_barrier(x->pool);
        if (x->comm && a->thread == 0) mc_comm_walk_progress(x->comm);
    }
    if (timed) {
        x->launch_seconds[index] += mc_seconds() - begin;
        x->launch_counts[index]++;
    }
    return good;
}

static void
run_thread(void *context, uint32_t thread, uint32_t n_threads)
{
    const step *s = context;
    mc_exec *x = s->x;
    moec_kernel_args a = {.thread = thread,
                          .n_threads = n_threads,
                          .past = x->past,
                          .cache_cap = x->cache_cap,
                          .scratch = x->scratch + thread * x->scratch_stride};
    walker w = {x, run_launch, x, &a};
    walk_from(&w, s->func, s->weight_base, s->args);
}

moec_status
mc_exec_run(mc_exec *x, uint32_t func, uint32_t weight_base, void *const *args, mc_fault *error)
{
    step s = {x, func, weight_base, args};
    x->comm_status = MOEC_OK;
    x->comm_error = error;
    if (x->comm) mc_comm_walk_step(x->comm);
    if (x->pool)
        mc_pool_run(x->pool, run_thread, &s);
    else
        run_thread(&s, 0, 1);
    return x->comm_status;
}
