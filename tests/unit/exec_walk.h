/* exec_walk: a file of tests/exec on a backend, against the interpreter and the file's own expectations. What a backend
 * is: how to open a walk for it, its pipelines, and what may change between two runs without changing a bit.
 */
#ifndef MC_TESTS_EXEC_WALK_H
#define MC_TESTS_EXEC_WALK_H

#include "ir/op.h"
#include "passes/pass.h"
#include "tests/support/exec_case.h"
#include "tests/unit/plan_walk.h"

#include <stdio.h>

enum { EXEC_MAX_OUTPUTS = 64, EXEC_MAX_STEPS = 32 };

typedef struct exec_backend {
    const char *pipelines[2]; /* fused and not */
    mc_pass_setting setting;  /* of the pipelines; no key: none */
    void (*open)(walk *w, const mc_module *plan, walk_source source, mc_diags *d);
    int n_variants;
    void (*vary)(walk *w, int variant); /* other threads, another order: the bits stay */
    const char *varied;                 /* what it changes, for messages */
    bool same_in_pieces;                /* bit for bit; otherwise nearly */
    bool narrows;                       /* its pipelines may round operands: the plan is what is interpreted */
} exec_backend;

/* ---- cases ----------------------------------------------------------------------------------------------------- */

typedef struct exec_run { /* one text, compiled */
    mc_arena *arena;
    mc_diags diags;
    mc_exec_case *c;
    walk w;
    int n_outputs;
    bool narrow; /* some values are rounded to 16 bits */
    mc_tol_class within;
} exec_run;

static inline bool
exec_is_narrow(const mc_module *m)
{
    MC_FOR_FUNCS(f, m)
    {
        MC_FOR_OPS(op, f)
        {
            bool narrow = op->n_results > 0 && moec_dtype_bytes(mc_result(op, 0)->type->dtype) == 2;
            if (narrow && op->opcode != MC_OP_PACKED && op->opcode != MC_OP_WEIGHT) return true;
        }
    }
    return false;
}

static inline mc_exec_case *
exec_load(const exec_backend *backend, const char *path, const char *pipeline, mc_arena *arena, mc_diags *diags)
{
    mc_exec_case *c = mc_exec_load(path, arena, diags);
    if (!c) walk_fail(diags);
    c->synthetic.bf16_grid = true; /* vectors are widened in the plan */
    mc_pass_options options = mc_pass_options_default();
    options.settings = &backend->setting;
    options.n_settings = backend->setting.key.len > 0;
    mc_str text = c->module->stage == MC_STAGE_PLAN ? MC_STR("plan-memory") : mc_str_of(pipeline);
    if (pipeline && !mc_run_pipeline(c->module, text, &options, diags)) walk_fail(diags);
    return c;
}

static inline void
exec_open(exec_run *b, const exec_backend *backend, const char *path, const char *pipeline)
{
    *b = (exec_run){.arena = mc_arena_create()};
    mc_diags_init(&b->diags, b->arena, NULL);
    b->c = exec_load(backend, path, pipeline, b->arena, &b->diags);
    b->n_outputs = mc_module_model(b->c->module)->last->n_operands;
    b->narrow = backend->narrows && exec_is_narrow(b->c->module);
    b->within = b->narrow && b->c->within == MC_TOL_MODEL ? MC_TOL_SHARES : b->c->within;
    ck_assert_int_le(b->n_outputs, EXEC_MAX_OUTPUTS);
    backend->open(&b->w, b->c->module, (walk_source){mc_exec_weight, b->c}, &b->diags);
    b->w.cache_cap = 200;
    for (int i = 0; i < MC_MAX_SYMS; i++) b->w.syms[i] = -1;
    for (size_t i = 0; i < b->c->sets.n; i++) {
        int sym = mc_symbol_get(b->c->module, b->c->sets.items[i].name);
        b->w.syms[sym] = b->c->sets.items[i].value;
    }
}

static inline void
exec_close(exec_run *b)
{
    walk_close(&b->w);
    mc_exec_close(b->c);
    mc_arena_destroy(b->arena);
}

/* What the interpreter gives for every step of the file, in f32: before any pass, or of the plan. */
static inline void
exec_interpret(const exec_backend *backend, const char *path, const char *pipeline, mc_arena *arena,
               mc_ref_tensor (*outputs)[EXEC_MAX_OUTPUTS])
{
    mc_diags diags;
    mc_diags_init(&diags, arena, NULL);
    mc_exec_case *c = exec_load(backend, path, backend->narrows ? pipeline : NULL, arena, &diags);
    mc_ref_options options = {.precision = MC_REF_F32, .weight = mc_exec_weight, .weight_user = c};
    mc_ref *ref = mc_ref_create(c->module, &options, &diags);
    if (!ref) walk_fail(&diags);
    for (size_t i = 0; i < c->sets.n; i++) mc_ref_set_symbol(ref, c->sets.items[i].name, c->sets.items[i].value);
    mc_ref_state *state = mc_ref_state_create();
    int n_outputs = mc_module_model(c->module)->last->n_operands;
    for (size_t i = 0; i < c->steps.n; i++) {
        const mc_exec_step *s = &c->steps.items[i];
        bool ok = mc_ref_run(ref, state, s->inputs.items, (int)s->inputs.n, arena, outputs[i], n_outputs);
        if (!ok && s->fails == MC_N_CODES) walk_fail(&diags);
    }
    mc_ref_state_destroy(state);
    mc_ref_destroy(ref);
    mc_exec_close(c);
}

/* Elements that the definition leaves open (rows past offsets[E]) are NaN or -1 in the interpreter's result. */
static inline void
exec_copy_undefined(const mc_ref_tensor *want, mc_ref_tensor *got)
{
    ck_assert_int_eq(want->n, got->n);
    for (int64_t i = 0; i < want->n; i++) {
        double x = mc_ref_tensor_get(want, i);
        bool open_float = mc_dtype_is_float(want->dtype) && isnan(x);
        if (open_float || (!mc_dtype_is_float(want->dtype) && x == -1)) mc_ref_tensor_set(got, i, x);
    }
}

static inline bool
exec_has_dispatch(const mc_module *m)
{
    MC_FOR_FUNCS(f, m)
    {
        MC_FOR_OPS(op, f) if (op->opcode == MC_OP_MOE_DISPATCH || op->opcode == MC_OP_MOE_PERMUTE) return true;
    }
    return false;
}

static inline void
exec_compare(const exec_run *b, const char *path, size_t step, int result, const mc_ref_tensor *got,
             const mc_ref_tensor *want)
{
    mc_ref_tensor copy = *got;
    size_t n_bytes = (size_t)got->n * moec_dtype_bytes(got->dtype);
    copy.data = mc_arena_copy(b->arena, got->data, n_bytes);
    if (exec_has_dispatch(b->c->module)) exec_copy_undefined(want, &copy);
    mc_close_report r = mc_close(MC_ARRAY(copy), MC_ARRAY(*want), b->within);
    ck_assert_msg(r.ok, "%s: step %zu, result %d: %s", path, step, result, r.text);
}

static inline void
exec_check_expects(const exec_run *b, const char *path, const mc_exec_step *s, const mc_ref_tensor *got)
{
    for (size_t i = 0; i < s->expects.n; i++) {
        const mc_exec_expect *e = &s->expects.items[i];
        mc_array a = MC_ARRAY(got[e->result]), want = MC_ARRAY(e->want);
        bool exact = e->exact && !b->narrow;
        mc_close_report r = exact ? mc_close_within(a, want, (mc_tolerance){0, 0, 0})
                                  : mc_close(a, want, b->narrow ? MC_TOL_NARROW : e->class);
        ck_assert_msg(r.ok, "%s: result %d against the file: %s", path, e->result, r.text);
    }
    for (size_t i = 0; i < s->same.n; i++) {
        mc_close_report r = mc_close_exact(MC_ARRAY(got[s->same.items[i].a]), MC_ARRAY(got[s->same.items[i].b]));
        ck_assert_msg(r.ok, "%s: results that must be the same differ: %s", path, r.text);
    }
}

static inline void
exec_run_file(const exec_backend *backend, const char *path, const char *pipeline)
{
    mc_ref_tensor want[EXEC_MAX_STEPS][EXEC_MAX_OUTPUTS], first[EXEC_MAX_STEPS][EXEC_MAX_OUTPUTS],
        got[EXEC_MAX_OUTPUTS];
    exec_run b;
    exec_open(&b, backend, path, pipeline);
    ck_assert_uint_le(b.c->steps.n, EXEC_MAX_STEPS);
    exec_interpret(backend, path, pipeline, b.arena, want);
    for (int n = 0; n < backend->n_variants; n++) {
        backend->vary(&b.w, n);
        walk_forget(&b.w);
        for (size_t i = 0; i < b.c->steps.n; i++) {
            const mc_exec_step *s = &b.c->steps.items[i];
            if (s->fails != MC_N_CODES) continue; /* faults of the data are the runtime's to refuse */
            walk_run(&b.w, s->inputs.items, b.arena, n ? got : first[i]);
            for (int r = 0; r < b.n_outputs && n; r++) {
                mc_close_report same = mc_close_exact(MC_ARRAY(got[r]), MC_ARRAY(first[i][r]));
                ck_assert_msg(same.ok, "%s: %s %d differs from the first: %s", path, backend->varied, n, same.text);
            }
            if (n) continue;
            exec_check_expects(&b, path, s, first[i]);
            for (int r = 0; r < b.n_outputs; r++) exec_compare(&b, path, i, r, &first[i][r], &want[i][r]);
        }
    }
    exec_close(&b);
}

/* Whether the file's name begins with one of the names between commas. */
static inline bool
exec_is_wanted(const char *path, const char *wanted)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    for (const char *at = wanted; *at;) {
        size_t n = strcspn(at, ",");
        if (n && strncmp(name, at, n) == 0) return true;
        at += n + (at[n] == ',');
    }
    return false;
}

/* ---- in pieces ----------------------------------------------------------------------------------- */

static inline int
exec_axis_of_s(const mc_module *m, const mc_type *t)
{
    for (int d = 0; d < t->rank; d++)
        if (t->dims[d].n_syms == 1 && mc_str_is(m->syms[t->dims[d].syms[0]].name, "S")) return d;
    return -1;
}

static inline mc_ref_tensor
exec_cut(const mc_ref_tensor *t, int axis, int64_t begin, int64_t n, mc_arena *arena)
{
    if (axis < 0) return *t;
    mc_ref_tensor part;
    int64_t dims[MC_MAX_RANK], inner = 1, all = t->dims[axis];
    memcpy(dims, t->dims, sizeof dims);
    dims[axis] = n;
    for (int d = axis + 1; d < t->rank; d++) inner *= t->dims[d];
    ck_assert(mc_ref_tensor_init(&part, t->dtype, dims, t->rank, arena));
    size_t bytes = moec_dtype_bytes(t->dtype);
    for (int64_t i = 0; i < part.n; i++) {
        int64_t from = (i / inner / n * all + begin + i / inner % n) * inner + i % inner;
        memcpy((char *)part.data + (size_t)i * bytes, (const char *)t->data + (size_t)from * bytes, bytes);
    }
    return part;
}

/* A sequence at once and in the pieces that the file names. */
static inline void
exec_check_pieces(const exec_backend *backend, const char *path, const char *pipeline)
{
    exec_run b;
    exec_open(&b, backend, path, pipeline);
    const mc_exec_step *s = &b.c->steps.items[0];
    const mc_func *model = mc_module_model(b.c->module);
    mc_ref_tensor whole[EXEC_MAX_OUTPUTS], part[EXEC_MAX_OUTPUTS], inputs[EXEC_MAX_OUTPUTS];
    if (s->pieces.n) walk_run(&b.w, s->inputs.items, b.arena, whole);
    walk_forget(&b.w);
    for (size_t piece = 0; piece < s->pieces.n; piece++) {
        int64_t begin = b.w.past, n = s->pieces.items[piece];
        for (size_t i = 0; i < s->inputs.n; i++) {
            inputs[i] = exec_cut(&s->inputs.items[i], exec_axis_of_s(b.c->module, model->formals.items[i]->type), begin,
                                 n, b.arena);
        }
        backend->vary(&b.w, (int)piece % backend->n_variants);
        walk_run(&b.w, inputs, b.arena, part);
        for (int r = 0; r < b.n_outputs; r++) {
            int axis = exec_axis_of_s(b.c->module, model->last->operands[r].value->type);
            mc_ref_tensor want = exec_cut(&whole[r], axis, begin, n, b.arena);
            mc_array a = MC_ARRAY(part[r]), all = MC_ARRAY(want);
            mc_close_report same = backend->same_in_pieces ? mc_close_exact(a, all) : mc_close(a, all, b.within);
            ck_assert_msg(same.ok, "%s: from position %lld on: %s", path, (long long)begin, same.text);
        }
    }
    exec_close(&b);
}

#endif
