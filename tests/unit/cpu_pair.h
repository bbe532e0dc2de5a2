/* cpu_pair: one module on the CPU backend and on the interpreter. What the kernels compute must be close to what the
 * interpreter computes in f32 and in f64, and the same bits with 1, 2, 3 and 7 threads.
 *
 *     mc_ref_tensor inputs[2];
 *     pair_open(&p);
 *     pair_normal(&p, &inputs[0], dims, rank, 1.0);
 *     pair_check(&p, "moir 1 stage=tensor\n...", inputs, MC_TOL_ELEMENTWISE);
 *     pair_close(&p); */
#ifndef MC_TESTS_CPU_PAIR_H
#define MC_TESTS_CPU_PAIR_H

#include "passes/pass.h"
#include "tests/support/close.h"
#include "tests/support/ir_fixture.h"
#include "tests/unit/cpu_walk.h"

#include <math.h>
#include <stdio.h>

enum { PAIR_MAX_OUTPUTS = 8 };

typedef struct pair {
    mc_ir_fixture x;
    uint64_t seed;
} pair;

static inline void
pair_open(pair *p, uint64_t seed)
{
    *p = (pair){.seed = seed * 2 + 1};
    mc_ir_setup(&p->x);
}

static inline void
pair_close(pair *p)
{
    mc_ir_teardown(&p->x);
}

/* 0 <= x < 1 */
static inline double
pair_random(pair *p)
{
    p->seed = p->seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(p->seed >> 40) / 16777216.0;
}

/* A sum of uniform numbers, of variance scale^2. */
static inline void
pair_normal(pair *p, mc_ref_tensor *t, const int64_t *dims, int rank, double scale)
{
    ck_assert(mc_ref_tensor_init(t, MOEC_F32, dims, rank, p->x.arena));
    for (int64_t i = 0; i < t->n; i++) {
        double x = pair_random(p) + pair_random(p) + pair_random(p) - 1.5;
        mc_ref_tensor_set(t, i, (float)(2 * scale * x));
    }
}

/* Integers in lo..hi-1. */
static inline void
pair_ids(pair *p, mc_ref_tensor *t, const int64_t *dims, int rank, int64_t lo, int64_t hi)
{
    ck_assert(mc_ref_tensor_init(t, MOEC_I32, dims, rank, p->x.arena));
    for (int64_t i = 0; i < t->n; i++)
        mc_ref_tensor_set(t, i, (double)(lo + (int64_t)(pair_random(p) * (double)(hi - lo))));
}

static inline void
pair_interpret(pair *p, mc_module *m, mc_ref_precision precision, const mc_ref_tensor *inputs, mc_ref_tensor *outputs)
{
    mc_ref_options options = {.precision = precision};
    mc_ref *ref = mc_ref_create(m, &options, &p->x.diags);
    if (!ref) walk_fail(&p->x.diags);
    const mc_func *f = mc_module_model(m);
    int n_in = (int)f->formals.n, n_out = f->last->n_operands;
    ck_assert_int_le(n_out, PAIR_MAX_OUTPUTS);
    if (!mc_ref_run(ref, NULL, inputs, n_in, p->x.arena, outputs, n_out)) walk_fail(&p->x.diags);
    mc_ref_destroy(ref);
}

static inline void
pair_lower(pair *p, mc_module *m, const char *passes)
{
    mc_cpu_target target;
    ck_assert(mc_cpu_target_find("native", &p->x.diags, &target));
    mc_pass_setting nr = {MC_STR_INIT("nr"), target.nr};
    mc_pass_options options = mc_pass_options_default();
    options.settings = &nr;
    options.n_settings = 1;
    if (!mc_run_pipeline(m, mc_str_of(passes), &options, &p->x.diags)) walk_fail(&p->x.diags);
}

static inline void
pair_compare(const char *text, int result, const mc_ref_tensor *got, const mc_ref_tensor *want, mc_tol_class class)
{
    mc_close_report r = mc_close(MC_ARRAY(*got), MC_ARRAY(*want), class);
    ck_assert_msg(r.ok, "result %d: %s\n%s", result, r.text, text);
}

static inline void
pair_check(pair *p, const char *text, const mc_ref_tensor *inputs, mc_tol_class class)
{
    mc_module *m = mc_ir_read(&p->x, text);
    if (!m) walk_fail(&p->x.diags);
    int n = mc_module_model(m)->last->n_operands;
    mc_ref_tensor narrow[PAIR_MAX_OUTPUTS], wide[PAIR_MAX_OUTPUTS], first[PAIR_MAX_OUTPUTS], got[PAIR_MAX_OUTPUTS];
    pair_interpret(p, m, MC_REF_F32, inputs, narrow);
    pair_interpret(p, m, MC_REF_F64, inputs, wide);
    pair_lower(p, m, "lower-to-plan,plan-memory");
    walk w;
    walk_open(&w, m, (walk_source){NULL, NULL}, &p->x.diags);
    w.cache_cap = INT32_MAX;
    for (int i = 0; i < MC_MAX_SYMS; i++) w.syms[i] = -1;
    static const int counts[] = {1, 2, 3, 7};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        int threads = counts[c];
        w.n_threads = threads;
        walk_forget(&w);
        walk_run(&w, inputs, p->x.arena, threads == 1 ? first : got);
        for (int i = 0; i < n && threads == 1; i++) {
            pair_compare(text, i, &first[i], &narrow[i], class);
            pair_compare(text, i, &first[i], &wide[i], class);
        }
        for (int i = 0; i < n && threads > 1; i++) {
            mc_close_report r = mc_close_exact(MC_ARRAY(got[i]), MC_ARRAY(first[i]));
            ck_assert_msg(r.ok, "result %d: %d threads differ from 1: %s\n%s", i, threads, r.text, text);
        }
    }
    walk_close(&w);
}

#endif
