/* Kernels of training that work on rows and flat arrays, against the interpreter: sizes that fit no vector, no tokens,
 * one and many, from 1 to 3 threads and vectors of half the width, whose results must be equal bit for bit. A module is
 * compiled once for each width and run for several T. */
#include "tests/support/synthetic.h"
#include "tests/unit/cpu_pair.h"

enum { N_TOKENS = 4 };
static const int64_t TOKENS[N_TOKENS] = {0, 1, 17, 301};
static const int WIDTHS[] = {1, 7, 16, 33, 100};
enum { N_WIDTHS = sizeof WIDTHS / sizeof *WIDTHS };
static const char *const ACTS[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid"};
enum { N_ACTS = sizeof ACTS / sizeof *ACTS };

/* WIDE: only close to f64, because one long chain in f32, as the interpreter has it, is worse than the kernel. */
typedef enum check_kind { CHECK_EXACT, CHECK_CLOSE, CHECK_WIDE } check_kind;

/* ---- one text for several T ---------------------------------------------------------------------------------------
 * Formals get normal numbers; those called %p..., positive ones. */

typedef struct family {
    pair p;
    const char *text;
    mc_module *module;
    int n_inputs, n_outputs;
    mc_ref_tensor inputs[N_TOKENS][PAIR_MAX_OUTPUTS], want[N_TOKENS][PAIR_MAX_OUTPUTS],
        wide[N_TOKENS][PAIR_MAX_OUTPUTS], got[N_TOKENS][PAIR_MAX_OUTPUTS];
} family;

static void
make_input(pair *p, const mc_value *formal, int64_t n_tokens, mc_ref_tensor *t)
{
    int64_t dims[MC_MAX_RANK];
    for (int d = 0; d < formal->type->rank; d++)
        dims[d] = formal->type->dims[d].n_syms ? n_tokens : mc_dim_eval(formal->type->dims[d], NULL);
    pair_normal(p, t, dims, formal->type->rank, 1.0);
    for (int64_t i = 0; i < t->n && formal->name.len && formal->name.data[0] == 'p'; i++)
        mc_ref_tensor_set(t, i, fabs(mc_ref_tensor_get(t, i)) + 0.2);
}

static void
compare(const family *f, int size, int result, check_kind kind, mc_tol_class class)
{
    mc_array got = MC_ARRAY(f->got[size][result]), want = MC_ARRAY(f->want[size][result]);
    mc_close_report r = kind == CHECK_EXACT ? mc_close_exact(got, want) : mc_close(got, want, class);
    ck_assert_msg(r.ok || kind == CHECK_WIDE, "T = %lld, result %d: %s\n%s", (long long)TOKENS[size], result, r.text,
                  f->text);
    if (kind == CHECK_EXACT) return;
    r = mc_close(got, MC_ARRAY(f->wide[size][result]), class);
    ck_assert_msg(r.ok, "T = %lld, result %d, f64: %s\n%s", (long long)TOKENS[size], result, r.text, f->text);
}

/* Runs every size with 1, 2 and 3 threads. */
static void
run_sizes(family *f, const mc_cpu_target *target, bool is_first)
{
    walk w;
    walk_open_for(&w, target, f->module, (walk_source){NULL, NULL}, &f->p.x.diags);
    w.cache_cap = INT32_MAX;
    for (int size = 0; size < N_TOKENS; size++) {
        for (int threads = 1; threads <= 3; threads++) {
            mc_ref_tensor again[PAIR_MAX_OUTPUTS];
            bool keep = is_first && threads == 1;
            w.n_threads = threads;
            walk_forget(&w);
            walk_run(&w, f->inputs[size], f->p.x.arena, keep ? f->got[size] : again);
            for (int i = 0; i < f->n_outputs && !keep; i++) {
                mc_close_report r = mc_close_exact(MC_ARRAY(again[i]), MC_ARRAY(f->got[size][i]));
                ck_assert_msg(r.ok, "T = %lld, result %d: %d threads, %d lanes differ: %s\n%s", (long long)TOKENS[size],
                              i, threads, target->vl, r.text, f->text);
            }
        }
    }
    walk_close(&w);
}

static void
check(const char *text, check_kind kind, mc_tol_class class)
{
    family f = {.text = text};
    pair_open(&f.p, mc_str_of(text).len);
    f.module = mc_ir_read(&f.p.x, text);
    if (!f.module) walk_fail(&f.p.x.diags);
    const mc_func *model = mc_module_model(f.module);
    f.n_inputs = (int)model->formals.n;
    f.n_outputs = model->last->n_operands;
    ck_assert_int_le(f.n_inputs, PAIR_MAX_OUTPUTS);
    for (int size = 0; size < N_TOKENS; size++) {
        for (int i = 0; i < f.n_inputs; i++)
            make_input(&f.p, model->formals.items[i], TOKENS[size], &f.inputs[size][i]);
        pair_interpret(&f.p, f.module, MC_REF_F32, f.inputs[size], f.want[size]);
        pair_interpret(&f.p, f.module, MC_REF_F64, f.inputs[size], f.wide[size]);
    }
    pair_lower(&f.p, f.module, "lower-to-plan,plan-memory");
    mc_cpu_target target;
    ck_assert(mc_cpu_target_find("native", &f.p.x.diags, &target));
    run_sizes(&f, &target, true);
    for (int size = 0; size < N_TOKENS; size++)
        for (int i = 0; i < f.n_outputs; i++) compare(&f, size, i, kind, class);
    target.vl /= 2;
    run_sizes(&f, &target, false);
    pair_close(&f.p);
}

/* ---- gated units and elementwise ------------------------------------------------------------------------------- */

START_TEST(glu)
{
    char text[1024];
    const char *act = ACTS[_i / N_WIDTHS];
    int d = WIDTHS[_i % N_WIDTHS];
    snprintf(text, sizeof text,
             "moir 1 stage=tensor\ndim T in 0..1000\n"
             "model @m(%%g: f32[T, %d], %%u: f32[T, %d], %%d: f32[T, %d]) -> (f32[T, %d], f32[T, %d], f32[T, %d]) {\n"
             "  %%h = glu %%g, %%u {act = \"%s\"} : f32[T, %d]\n"
             "  %%dg, %%du = glu_grad %%g, %%u, %%d {act = \"%s\"} : f32[T, %d], f32[T, %d]\n"
             "  return %%h, %%dg, %%du\n}\n",
             d, d, d, d, d, d, act, d, act, d, d);
    check(text, CHECK_CLOSE, MC_TOL_SLOPE);
}
END_TEST

START_TEST(moe_glu_grad)
{
    char text[1024];
    const char *act = ACTS[_i / N_WIDTHS];
    int d = WIDTHS[_i % N_WIDTHS];
    snprintf(text, sizeof text,
             "moir 1 stage=tensor\ndim T in 0..1000\n"
             "model @m(%%g: f32[T, %d], %%u: f32[T, %d], %%d: f32[T, %d], %%gates: f32[T])"
             " -> (f32[T, %d], f32[T, %d], f32[T, %d], f32[T]) {\n"
             "  %%dg, %%du, %%h, %%dgates = moe.glu_grad %%g, %%u, %%d, %%gates {act = \"%s\"}"
             " : f32[T, %d], f32[T, %d], f32[T, %d], f32[T]\n"
             "  return %%dg, %%du, %%h, %%dgates\n}\n",
             d, d, d, d, d, d, act, d, d, d);
    check(text, CHECK_CLOSE, MC_TOL_SLOPE);
}
END_TEST

static const struct {
    const char *x, *of, *numbers;
} UNARY[] = {{"x", "neg", ""},
             {"x", "silu", ""},
             {"x", "gelu", ""},
             {"x", "gelu_tanh", ""},
             {"x", "relu", ""},
             {"x", "relu2", ""},
             {"x", "sigmoid", ""},
             {"x", "tanh", ""},
             {"x", "exp", ""},
             {"p", "log", ""},
             {"p", "log1p", ""},
             {"p", "sqrt", ""},
             {"x", "softplus", ""},
             {"x", "floor", ""},
             {"x", "clamp", ", lo = -0.5, hi = 1.5"},
             {"x", "softcap", ", cap = 3.0"}};
enum { N_UNARY = sizeof UNARY / sizeof *UNARY };

START_TEST(unary)
{
    char text[512];
    snprintf(text, sizeof text,
             "moir 1 stage=tensor\ndim T in 0..1000\nmodel @m(%%%s: f32[T, 29], %%dy: f32[T, 29]) -> (f32[T, 29]) {\n"
             "  %%dx = unary_grad %%%s, %%dy {of = \"%s\"%s} : f32[T, 29]\n  return %%dx\n}\n",
             UNARY[_i].x, UNARY[_i].x, UNARY[_i].of, UNARY[_i].numbers);
    check(text, CHECK_CLOSE, MC_TOL_SLOPE);
}
END_TEST

/* Ends of the range, where a factor overflows, and the corners. */
START_TEST(unary_extremes)
{
    static const float X[] = {0,   -0.0f, -1,   1,   19.9f, 20,    20.5f, -30,   30,
                              -88, 88,    -104, 104, 1e4f,  -1e4f, 1e30f, -1e30f};
    static const char *const OF[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "softplus"};
    static const double AT_MOST[] = {1.1, 1.13, 1.13, 1, 0, 0.25, 1, 1}; /* of relu2: no bound */
    pair p;
    pair_open(&p, 5);
    for (size_t i = 0; i < sizeof OF / sizeof *OF; i++) {
        const int64_t dims[] = {sizeof X / sizeof *X};
        mc_ref_tensor inputs[2], got[1];
        mc_str text =
            mc_strf(p.x.arena,
                    "moir 1 stage=tensor\ndim T in 0..1000\nmodel @m(%%x: f32[T], %%dy: f32[T]) -> (f32[T]) {\n"
                    "  %%dx = unary_grad %%x, %%dy {of = \"%s\"} : f32[T]\n  return %%dx\n}\n",
                    OF[i]);
        mc_module *m = mc_ir_read(&p.x, text.data);
        if (!m) walk_fail(&p.x.diags);
        for (int j = 0; j < 2; j++) ck_assert(mc_ref_tensor_init(&inputs[j], MOEC_F32, dims, 1, p.x.arena));
        for (int64_t j = 0; j < dims[0]; j++) {
            mc_ref_tensor_set(&inputs[0], j, X[j]);
            mc_ref_tensor_set(&inputs[1], j, 1);
        }
        pair_lower(&p, m, "lower-to-plan,plan-memory");
        walk w;
        walk_open(&w, m, (walk_source){NULL, NULL}, &p.x.diags);
        walk_run(&w, inputs, p.x.arena, got);
        for (int64_t j = 0; j < dims[0]; j++) {
            double d = mc_ref_tensor_get(&got[0], j);
            ck_assert_msg(isfinite(d), "%s at %g: %g", OF[i], X[j], d);
            if (AT_MOST[i] > 0) ck_assert_msg(fabs(d) <= AT_MOST[i], "%s at %g: %g", OF[i], X[j], d);
        }
        walk_close(&w);
    }
    pair_close(&p);
}
END_TEST

/* ---- along rows ------------------------------------------------------------------------------------------------ */

static const int ROWS[] = {1, 2, 7, 8, 16, 33, 100, 768};
enum { N_ROWS = sizeof ROWS / sizeof *ROWS };

START_TEST(norms)
{
    char text[1024];
    int d = ROWS[_i];
    snprintf(text, sizeof text,
             "moir 1 stage=tensor\ndim T in 0..1000\n"
             "model @m(%%x: f32[T, %d], %%dy: f32[T, %d]) -> (f32[T, %d], f32[T, %d], f32[T, %d], f32[T]) {\n"
             "  %%a = norm_grad %%x, %%dy {of = \"rmsnorm\", eps = 0.01} : f32[T, %d]\n"
             "  %%b = norm_grad %%x, %%dy {of = \"layernorm\", eps = 0.01} : f32[T, %d]\n"
             "  %%c = norm_grad %%x, %%dy {of = \"l2norm\", eps = 0.01} : f32[T, %d]\n"
             "  %%r = row_dot %%x, %%dy : f32[T]\n"
             "  return %%a, %%b, %%c, %%r\n}\n",
             d, d, d, d, d, d, d, d);
    check(text, CHECK_CLOSE, MC_TOL_SLOPE);
}
END_TEST

START_TEST(softmax)
{
    char text[512];
    int d = ROWS[_i];
    snprintf(text, sizeof text,
             "moir 1 stage=tensor\ndim T in 0..1000\nmodel @m(%%x: f32[T, 3, %d], %%dy: f32[T, 3, %d]) -> (f32[T, 3, "
             "%d]) {\n"
             "  %%y = softmax %%x : f32[T, 3, %d]\n  %%dx = softmax_grad %%y, %%dy : f32[T, 3, %d]\n"
             "  return %%dx\n}\n",
             d, d, d, d, d);
    check(text, CHECK_CLOSE, MC_TOL_SLOPE);
}
END_TEST

static const char *const RENORMS[] = {
    "", "eps = 0.1", "eps = 0.01, p = 2.0", "p = 3.0, eps = 0.1", "p = 1.5, eps = 0.1", "floor = 1.0", "floor = 20.0"};
enum { N_RENORMS = sizeof RENORMS / sizeof *RENORMS };

START_TEST(renorm)
{
    char text[512];
    int d = ROWS[_i % N_ROWS];
    const char *numbers = RENORMS[_i / N_ROWS];
    snprintf(text, sizeof text,
             "moir 1 stage=tensor\ndim T in 0..1000\nmodel @m(%%p: f32[T, %d], %%dy: f32[T, %d]) -> (f32[T, %d]) {\n"
             "  %%dw = route.renorm_grad %%p, %%dy%s%s%s : f32[T, %d]\n  return %%dw\n}\n",
             d, d, d, *numbers ? " {" : "", numbers, *numbers ? "}" : "", d);
    check(text, CHECK_CLOSE, MC_TOL_SLOPE);
}
END_TEST

/* Weights below and at 0 have a slope of their own. */
START_TEST(renorm_signs)
{
    char text[512];
    const char *numbers = RENORMS[_i];
    snprintf(
        text, sizeof text,
        "moir 1 stage=tensor\ndim T in 0..1000\nmodel @m(%%x: f32[T, 4], %%dy: f32[T, 4]) -> (f32[T, 4], f32[T, 4]) {\n"
        "  %%w = relu %%x : f32[T, 4]\n  %%a = route.renorm_grad %%w, %%dy%s%s%s : f32[T, 4]\n"
        "  %%b = route.renorm_grad %%x, %%dy%s%s%s : f32[T, 4]\n  return %%a, %%b\n}\n",
        *numbers ? " {" : "", numbers, *numbers ? "}" : "", *numbers ? " {" : "", numbers, *numbers ? "}" : "");
    check(text, CHECK_CLOSE, MC_TOL_SLOPE);
}
END_TEST

/* ---- shapes ---------------------------------------------------------------------------------------------------- */

/* Where the innermost axis is kept, an element is one chain in ascending order: the interpreter's bits. */
static const struct {
    const char *from, *to;
    check_kind kind;
} SUMS[] = {{"T, 1", "1", CHECK_WIDE},
            {"T, 7", "7", CHECK_EXACT},
            {"T, 100", "100", CHECK_EXACT},
            {"T, 768", "768", CHECK_EXACT},
            {"T, 3, 33", "33", CHECK_EXACT},
            {"T, 3, 33", "3, 33", CHECK_EXACT},
            {"T, 3, 33", "3, 1", CHECK_WIDE},
            {"T, 3, 33", "T, 1, 33", CHECK_EXACT},
            {"T, 3, 33", "T, 3, 1", CHECK_WIDE},
            {"T, 3, 33", "T, 1, 1", CHECK_WIDE},
            {"T, 3, 5", "", CHECK_WIDE},
            {"T, 3, 33", "1, 3, 1", CHECK_WIDE},
            {"T, 33", "", CHECK_WIDE},
            {"T, 33", "T, 33", CHECK_EXACT},
            {"", "", CHECK_EXACT},
            {"5, T", "5, 1", CHECK_WIDE},
            {"5, T", "T", CHECK_EXACT},
            {"1, T", "T", CHECK_EXACT},
            {"4, T, 3, 16", "4, 1, 3, 1", CHECK_WIDE},
            {"4, T, 3, 17", "1, T, 1, 17", CHECK_EXACT},
            {"4, T, 3, 2, 5", "4, 1, 3, 1, 5", CHECK_EXACT}};
enum { N_SUMS = sizeof SUMS / sizeof *SUMS };

START_TEST(sum_to)
{
    char text[512];
    snprintf(text, sizeof text,
             "moir 1 stage=tensor\ndim T in 0..1000\nmodel @m(%%x: f32[%s], %%t: f32[T]) -> (f32[%s]) {\n"
             "  %%y = sum_to %%x : f32[%s]\n  return %%y\n}\n",
             SUMS[_i].from, SUMS[_i].to, SUMS[_i].to);
    check(text, SUMS[_i].kind, MC_TOL_SLOPE);
}
END_TEST

static const struct {
    const char *from, *to, *numbers;
} SLICES[] = {
    {"T, 7", "T, 20", "axis = 1, begin = 3, size = 20"},  {"T, 7", "T, 7", "axis = -1, begin = 0, size = 7"},
    {"T, 33", "T, 34", "axis = 1, begin = 1, size = 34"}, {"T, 2, 9", "T, 5, 9", "axis = 1, begin = 2, size = 5"},
    {"3, T", "8, T", "axis = 0, begin = 5, size = 8"},    {"3, T, 4", "3, T, 5", "axis = 2, begin = 0, size = 5"}};
enum { N_SLICES = sizeof SLICES / sizeof *SLICES };

START_TEST(unslice)
{
    char text[512];
    snprintf(text, sizeof text,
             "moir 1 stage=tensor\ndim T in 0..1000\nmodel @m(%%x: f32[%s]) -> (f32[%s]) {\n"
             "  %%y = unslice %%x {%s} : f32[%s]\n  return %%y\n}\n",
             SLICES[_i].from, SLICES[_i].to, SLICES[_i].numbers, SLICES[_i].to);
    check(text, CHECK_EXACT, MC_N_TOL_CLASSES);
}
END_TEST

START_TEST(fill)
{
    check("moir 1 stage=tensor\ndim T in 0..1000\nmodel @m(%x: f32[T]) -> (f32[], f32[T, 33], f32[5]) {\n"
          "  %a = fill {value = 1.0} : f32[]\n  %b = fill {value = 0.0} : f32[T, 33]\n  %c = fill {value = -2.5} : "
          "f32[5]\n"
          "  return %a, %b, %c\n}\n",
          CHECK_EXACT, MC_N_TOL_CLASSES);
}
END_TEST

/* Losses and their cotangents are scalars in memory. */
START_TEST(scalars)
{
    check("moir 1 stage=tensor\ndim T in 0..1000\n"
          "model @m(%a: f32[], %b: f32[], %x: f32[T, 33], %w: f32[T, 1]) -> (f32[], f32[], f32[T, 33], f32[T, 33], "
          "f32[T, 33], f32[T, 33], f32[]) {\n"
          "  %half = const {value = 0.5} : f32\n"
          "  %r0 = add %a, %b : f32[]\n  %r1 = mul %a, %half : f32[]\n"
          "  %r2 = mul %x, %a : f32[T, 33]\n  %r3 = sub %b, %x : f32[T, 33]\n"
          "  %r4 = mul %x, %w : f32[T, 33]\n  %r5 = div %w, %x : f32[T, 33]\n  %r6 = neg %b : f32[]\n"
          "  return %r0, %r1, %r2, %r3, %r4, %r5, %r6\n}\n",
          CHECK_EXACT, MC_N_TOL_CLASSES);
}
END_TEST

/* ---- forward kernels in a plan of training
 * ---------------------------------------------------------------------------- Parameters are f32 rows, a scalar among
 * them; nothing is cached. */

static const char FORWARD[] =
    "moir 1 stage=tensor\ndim B\ndim S in 1..100\n"
    "model @m(%ids: i32[B, S], %gain: f32[]) -> (f32[B, S, 24], f32[B, S, 24], f32[B, S, 3, 8], f32[B, S, 24]) {\n"
    "  %table = weight {path = \"table\", role = \"embed\"} : f32[11, 24]\n"
    "  %w = weight {path = \"norm\", role = \"norm\"} : f32[24]\n"
    "  %b = weight {path = \"b\", role = \"dense\"} : f32[24]\n"
    "  %scalar = weight {path = \"scalar\", role = \"dense\"} : f32[]\n"
    "  %x = embed %ids, %table : f32[B, S, 24]\n"
    "  %n = rmsnorm %x, %w {eps = 0.001, plus_one = true} : f32[B, S, 24]\n"
    "  %y = add %n, %b : f32[B, S, 24]\n"
    "  %l = layernorm %x, %w, %b {eps = 0.001} : f32[B, S, 24]\n"
    "  %q0 = reshape %n : f32[B, S, 3, 8]\n  %q = rope %q0 {theta = 10000.0} : f32[B, S, 3, 8]\n"
    "  %k0 = reshape %y : f32[B, S, 3, 8]\n  %k = rope %k0 {theta = 10000.0} : f32[B, S, 3, 8]\n"
    "  %v = reshape %l : f32[B, S, 3, 8]\n"
    "  %o = sdpa %q, %k, %v {scale = 0.35} : f32[B, S, 3, 8]\n"
    "  %s = mul %o, %scalar : f32[B, S, 3, 8]\n  %z = mul %y, %gain : f32[B, S, 24]\n"
    "  return %y, %l, %s, %z\n}\n";

START_TEST(forward)
{
    static const int64_t SHAPES[][2] = {{1, 1}, {2, 5}, {3, 67}};
    pair p;
    mc_synthetic weights;
    pair_open(&p, 11);
    mc_synthetic_init(&weights, p.x.arena, 4);
    mc_module *plan = mc_ir_read(&p.x, FORWARD), *m = mc_ir_read(&p.x, FORWARD);
    if (!m || !plan) walk_fail(&p.x.diags);
    pair_lower(&p, plan, "lower-to-plan{rows=1},plan-memory");
    walk w;
    walk_open(&w, plan, (walk_source){mc_ref_synthetic_weight, &weights}, &p.x.diags);
    mc_ref_options ref_options = {.weight = mc_ref_synthetic_weight, .weight_user = &weights};
    mc_ref *ref = mc_ref_create(m, &ref_options, &p.x.diags);
    if (!ref) walk_fail(&p.x.diags);
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        mc_ref_tensor inputs[2], want[4], got[4];
        pair_ids(&p, &inputs[0], SHAPES[i], 2, 0, 11);
        pair_normal(&p, &inputs[1], NULL, 0, 1);
        if (!mc_ref_run(ref, NULL, inputs, 2, p.x.arena, want, 4)) walk_fail(&p.x.diags);
        for (w.n_threads = 1; w.n_threads <= 3; w.n_threads++) {
            walk_forget(&w);
            w.cache_cap = SHAPES[i][1];
            walk_run(&w, inputs, p.x.arena, got);
            for (int r = 0; r < 4; r++) pair_compare(FORWARD, r, &got[r], &want[r], MC_TOL_ATTENTION);
        }
    }
    mc_ref_destroy(ref);
    walk_close(&w);
    pair_close(&p);
}
END_TEST

/* ---- accumulate ------------------------------------------------------------------------------------------------ */

static bool
ones(void *user, const mc_ref_weight_request *r, mc_ref_tensor *out)
{
    mc_arena *arena = user;
    if (!mc_ref_tensor_init(out, r->dtype, r->dims, r->rank, arena)) return false;
    for (int64_t i = 0; i < out->n; i++) mc_ref_tensor_set(out, i, 1);
    return true;
}

static void
expect_all(const float *values, int n, float want)
{
    for (int i = 0; i < n; i++) ck_assert_msg(values[i] == want, "element %d is %g, not %g", i, values[i], want);
}

/* Adds to what is there; a parameter without a gradient is left alone; a scalar has one, too. */
START_TEST(accumulate)
{
    pair p;
    pair_open(&p, 3);
    mc_module *m = mc_ir_read(&p.x, "moir 1 stage=plan\ndim T in 0..1000\n"
                                    "model @m(%x: f32[T]) -> (f32[T]) {\n"
                                    "  %a = packed {path = \"a\", role = \"dense\", layout = \"grad\"} : f32[3, 67]\n"
                                    "  %b = packed {path = \"b\", role = \"dense\", layout = \"grad\"} : f32[5]\n"
                                    "  %c = packed {path = \"c\", role = \"dense\", layout = \"grad\"} : f32[]\n"
                                    "  %da = fill {value = 0.5} : f32[3, 67]\n  accumulate %da, %a {path = \"a\"}\n"
                                    "  %db = fill {value = 4.0} : f32[5]\n  accumulate %db, %b {path = \"b\"}\n"
                                    "  %dc = fill {value = -3.0} : f32[]\n  accumulate %dc, %c {path = \"c\"}\n"
                                    "  accumulate %da, %a {path = \"a\"}\n"
                                    "  %y = copy %x : f32[T]\n  return %y\n}\n");
    if (!m) walk_fail(&p.x.diags);
    pair_lower(&p, m, "plan-memory");
    walk w;
    walk_open(&w, m, (walk_source){ones, p.x.arena}, &p.x.diags);
    ck_assert_uint_eq(w.abi->n_weights, 3);
    void *b = w.weights[1];
    w.weights[1] = NULL;
    const int64_t dims[] = {2};
    mc_ref_tensor input, output;
    pair_normal(&p, &input, dims, 1, 1);
    for (int threads = 1; threads <= 3; threads++) {
        w.n_threads = threads;
        walk_run(&w, &input, p.x.arena, &output);
        expect_all(w.weights[0], 3 * 67, 1 + (float)threads);
        expect_all(w.weights[2], 1, 1 - 3 * (float)threads);
    }
    expect_all(b, 5, 1);
    w.weights[1] = b;
    walk_run(&w, &input, p.x.arena, &output);
    expect_all(b, 5, 5);
    walk_close(&w);
    pair_close(&p);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("cpu_grad");
    TCase *t = tcase_create("cpu_grad");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, glu, 0, N_ACTS * N_WIDTHS);
    tcase_add_loop_test(t, moe_glu_grad, 0, N_ACTS * N_WIDTHS);
    tcase_add_loop_test(t, unary, 0, N_UNARY);
    tcase_add_test(t, unary_extremes);
    tcase_add_loop_test(t, norms, 0, N_ROWS);
    tcase_add_loop_test(t, softmax, 0, N_ROWS);
    tcase_add_loop_test(t, renorm, 0, N_RENORMS * N_ROWS);
    tcase_add_loop_test(t, renorm_signs, 0, N_RENORMS);
    tcase_add_loop_test(t, sum_to, 0, N_SUMS);
    tcase_add_loop_test(t, unslice, 0, N_SLICES);
    tcase_add_test(t, fill);
    tcase_add_test(t, scalars);
    tcase_add_test(t, forward);
    tcase_add_test(t, accumulate);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
