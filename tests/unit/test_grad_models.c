/* Derivatives of whole models are true, against finite differences in f64: every kind of route with capacity, gates on
 * either side, a shared gated expert and losses; the families, from their configurations; and programs drawn at random.
 * MOEC_GRAD_PROGRAMS=1000 tries more of these. */
#include "frontend/import.h"
#include "ir/print.h"
#include "passes/pass.h"
#include "runtime/base/file.h"
#include "tests/support/finite_difference.h"
#include "tests/support/gen_module.h"
#include "tests/support/ir_fixture.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#define BEFORE "expand-moe,canonicalize,cse,dce,routing-losses,"
#define FUSED "fuse-moe{train=1},dce,"
static const char *const pipelines[] = {BEFORE FUSED "autodiff",
                                        BEFORE FUSED "autodiff{recompute=1}",
                                        BEFORE "autodiff",
                                        BEFORE FUSED "autodiff,canonicalize,cse,dce,fuse-grad",
                                        BEFORE FUSED "autodiff{recompute=1},canonicalize,cse,dce,fuse-grad",
                                        "@train"};
enum { N_PIPELINES = sizeof pipelines / sizeof *pipelines, RECOMPUTE = 1 };
static const double limit = 1e-6, same_limit = 1e-9;

/* A module and its forms; the module is made anew for each form by `make`. */
typedef struct rig {
    mc_ir_fixture x;
    mc_synthetic synthetic;
    mc_module *module;
    mc_fd fd;
} rig;

typedef mc_module *make_fn(mc_ir_fixture *x, int number);
typedef void input_fn(const mc_module *m, int number, mc_arena *arena, mc_ref_tensor *inputs);

static void
show(rig *r, const char *what, int number)
{
    fprintf(stderr, "# %s %d\n%s\n", what, number, mc_ir_print(&r->x, r->module).data);
}

static void
open_rig(rig *r, make_fn *make, input_fn *input, int number, const char *pipeline)
{
    mc_ref_tensor inputs[MC_GEN_INPUTS + 1];
    *r = (rig){0};
    mc_ir_setup(&r->x);
    r->module = make(&r->x, number);
    ck_assert_msg(r->module != NULL, "%d: %s", number, mc_ir_messages(&r->x).data);
    mc_synthetic_init(&r->synthetic, r->x.arena, (uint64_t)number);
    mc_pass_options options = mc_pass_options_default();
    bool ok = mc_run_pipeline(r->module, mc_str_of(pipeline), &options, &r->x.diags);
    ck_assert_msg(ok, "%d, %s: %s", number, pipeline, mc_ir_messages(&r->x).data);
    input(r->module, number, r->x.arena, inputs);
    mc_fd_options how = {.module = r->module,
                         .arena = r->x.arena,
                         .diags = &r->x.diags,
                         .weight = mc_ref_synthetic_weight,
                         .weight_user = &r->synthetic,
                         .seed = (uint64_t)number + 1};
    ok = mc_fd_open(&r->fd, &how, inputs, (int)mc_module_model(r->module)->formals.n);
    if (!ok) show(r, pipeline, number);
    ck_assert_msg(ok, "%d, %s: %s", number, pipeline, mc_ir_messages(&r->x).data);
}

static void
close_rig(rig *r)
{
    mc_fd_close(&r->fd);
    mc_ir_teardown(&r->x);
}

static void
check(make_fn *make, input_fn *input, const char *what, int number, int per_tensor, int skipped_of)
{
    rig first, other;
    open_rig(&first, make, input, number, pipelines[0]);
    mc_fd_report report = mc_fd_compare(&first.fd, per_tensor);
    if (getenv("MOEC_GRAD_REPORT"))
        printf("%s %d: %d elements, %d skipped, worst %.2e\n", what, number, report.n_checked, report.n_skipped,
               report.worst);
    if (report.worst > limit) show(&first, what, number);
    ck_assert_msg(report.worst <= limit, "%s %d: %s", what, number, report.text);
    ck_assert_msg(report.n_checked > 0 && report.n_skipped * skipped_of <= report.n_checked,
                  "%s %d: %d elements compared, %d skipped", what, number, report.n_checked, report.n_skipped);
    for (int i = 1; i < N_PIPELINES; i++) {
        open_rig(&other, make, input, number, pipelines[i]);
        double distance = mc_fd_distance(&other.fd, &first.fd), most = i == RECOMPUTE ? 0 : same_limit;
        if (distance > most) show(&other, what, number);
        ck_assert_msg(distance <= most, "%s %d, %s: gradients differ by %.3g", what, number, pipelines[i], distance);
        close_rig(&other);
    }
    close_rig(&first);
}

/* ---- routes: the configurations of the design's oracle --------------------------------------------------------- */

enum { SOFTMAX, SOFTMAX_RENORM, TOP_SOFTMAX, SIGMOID_BIAS, SIGMOID_BIAS_RENORM, N_ROUTERS };
enum { DROPLESS, TAIL, SLOT_SCORE, BEFORE_RENORM, N_CAPACITIES };
enum { N_ROUTES = N_ROUTERS * N_CAPACITIES * 2 * 2 };

typedef struct route_config {
    int router, capacity;
    bool on_input, losses;
} route_config;

static route_config
route_of(int number)
{
    return (route_config){number % N_ROUTERS, number / N_ROUTERS % N_CAPACITIES,
                          number / N_ROUTERS / N_CAPACITIES % 2 == 1, number / N_ROUTERS / N_CAPACITIES / 2 == 1};
}

/* Dropping before the renorm needs one. */
static bool
makes_sense(route_config c)
{
    return c.capacity != BEFORE_RENORM || c.router == SOFTMAX_RENORM || c.router == SIGMOID_BIAS_RENORM;
}

static void
print_route(mc_buf *out, route_config c)
{
    bool sigmoid = c.router >= SIGMOID_BIAS;
    const char *scores = c.router == TOP_SOFTMAX ? "z" : "p";
    mc_buf_printf(out, "func @route(%%x: f32[B, S, 5]) -> (f32[B, S, 2], i32[B, S, 2]) {\n"
                       "  %%w = weight {path = \"gate.weight\", role = \"router\"} : f32[6, 5]\n"
                       "  %%z = linear %%x, %%w : f32[B, S, 6]\n");
    mc_buf_printf(out, "  %%p = %s %%z : f32[B, S, 6]\n", sigmoid ? "sigmoid" : "softmax");
    if (sigmoid)
        mc_buf_printf(out, "  %%b = weight {path = \"gate.bias\", role = \"router\"} : f32[6]\n"
                           "  %%key = add %%p, %%b : f32[B, S, 6]\n");
    mc_buf_printf(out, "  %%v, %%ids = route.top %%%s, %%%s {k = 2} : f32[B, S, 2], i32[B, S, 2]\n", scores,
                  sigmoid ? "key" : scores);
    const char *weights = "v", *ids = "ids";
    if (c.capacity == BEFORE_RENORM) {
        mc_buf_printf(out, "  %%kept, %%kids = moe.capacity %%v, %%ids {experts = 6, factor = 0.75} : f32[B, S, 2], "
                           "i32[B, S, 2]\n");
        weights = "kept", ids = "kids";
    }
    bool renorm = c.router == SOFTMAX_RENORM || c.router == SIGMOID_BIAS_RENORM;
    if (renorm) mc_buf_printf(out, "  %%n = route.renorm %%%s {eps = 1e-20} : f32[B, S, 2]\n", weights);
    if (c.router == TOP_SOFTMAX) mc_buf_printf(out, "  %%n = softmax %%%s : f32[B, S, 2]\n", weights);
    if (renorm || c.router == TOP_SOFTMAX) weights = "n";
    if (c.losses)
        mc_buf_printf(out, "  %%aux = moe.balance %%p, %%ids : f32\n"
                           "  output %%aux {name = \"aux\", sum = true}\n"
                           "  %%whole = route.renorm %%p : f32[B, S, 6]\n"
                           "  %%seq = moe.balance %%whole, %%ids {per = \"sequence\"} : f32\n"
                           "  output %%seq {name = \"sequence\", sum = true}\n"
                           "  %%lse = moe.z_loss %%z : f32\n"
                           "  output %%lse {name = \"z\", sum = true}\n");
    mc_buf_printf(out,
                  "  %%c = const {value = 2.5} : f32\n  %%scaled = mul %%%s, %%c : f32[B, S, 2]\n"
                  "  return %%scaled, %%%s\n}\n",
                  weights, ids);
}

static const char experts_text[] =
    "func @expert(%x: f32[R, 5]) -> (f32[R, 5]) {\n"
    "  %wg = weight {path = \"experts.gate\", role = \"experts\", experts = 6} : f32[4, 5]\n"
    "  %wu = weight {path = \"experts.up\", role = \"experts\", experts = 6} : f32[4, 5]\n"
    "  %wd = weight {path = \"experts.down\", role = \"experts\", experts = 6} : f32[5, 4]\n"
    "  %bd = weight {path = \"experts.down_bias\", role = \"experts\", experts = 6} : f32[5]\n"
    "  %g = linear %x, %wg : f32[R, 4]\n"
    "  %a = silu %g : f32[R, 4]\n"
    "  %u = linear %x, %wu : f32[R, 4]\n"
    "  %h = mul %a, %u : f32[R, 4]\n"
    "  %y = linear %h, %wd, %bd : f32[R, 5]\n"
    "  return %y\n"
    "}\n"
    "func @shared(%x: f32[B, S, 5]) -> (f32[B, S, 5]) {\n"
    "  %wg = weight {path = \"shared.gate\", role = \"shared\"} : f32[3, 5]\n"
    "  %wu = weight {path = \"shared.up\", role = \"shared\"} : f32[3, 5]\n"
    "  %wd = weight {path = \"shared.down\", role = \"shared\"} : f32[5, 3]\n"
    "  %wq = weight {path = \"shared.q\", role = \"shared\"} : f32[1, 5]\n"
    "  %g = linear %x, %wg : f32[B, S, 3]\n"
    "  %a = silu %g : f32[B, S, 3]\n"
    "  %u = linear %x, %wu : f32[B, S, 3]\n"
    "  %h = mul %a, %u : f32[B, S, 3]\n"
    "  %d = linear %h, %wd : f32[B, S, 5]\n"
    "  %q = linear %x, %wq : f32[B, S, 1]\n"
    "  %s = sigmoid %q : f32[B, S, 1]\n"
    "  %y = mul %d, %s : f32[B, S, 5]\n"
    "  return %y\n"
    "}\n";

static mc_module *
make_route(mc_ir_fixture *x, int number)
{
    static const char *const capacities[] = {"", ", capacity = 0.75",
                                             ", capacity = 0.75, per = \"slot\", drop = \"score\"", ""};
    route_config c = route_of(number);
    mc_buf text = {0};
    mc_buf_printf(&text, "moir 1 stage=tensor\ndim B\ndim S\ndim R\n");
    print_route(&text, c);
    mc_buf_printf(&text, "%s", experts_text);
    mc_buf_printf(&text,
                  "model @m(%%x: f32[B, S, 5]) -> (f32[B, S, 5]) {\n"
                  "  %%y = moe %%x {route = @route, body = @expert, experts = 6%s%s} : f32[B, S, 5]\n"
                  "  %%s = call %%x {callee = @shared} : f32[B, S, 5]\n"
                  "  %%z = add %%y, %%s : f32[B, S, 5]\n"
                  "  return %%z\n"
                  "}\n",
                  c.on_input ? ", on_input = true" : "", capacities[c.capacity]);
    mc_module *m = mc_ir_read(x, text.data);
    mc_buf_fini(&text);
    return m;
}

static void
normal_input(const mc_module *m, int number, mc_arena *arena, mc_ref_tensor *inputs)
{
    const int64_t dims[3] = {2, 4, mc_type_last(mc_module_model(m)->formals.items[0]->type).mul};
    ck_assert(mc_ref_tensor_init(inputs, MOEC_F32, dims, 3, arena));
    for (int64_t i = 0; i < inputs->n; i++) mc_ref_tensor_set(inputs, i, mc_noise_normal((uint64_t)number, i));
}

START_TEST(routes)
{
    if (makes_sense(route_of(_i))) check(make_route, normal_input, "route", _i, 12, 20);
}
END_TEST

/* ---- families -------------------------------------------------------------------------------------------------- */

static const char *const families[] = {"mixtral_tiny", "qwen2moe_tiny",   "qwen3moe_tiny",
                                       "olmoe_tiny",   "deepseekv3_tiny", "deepseekv3_noqlora_tiny"};
enum { N_FAMILIES = sizeof families / sizeof *families };

static mc_module *
make_family(mc_ir_fixture *x, int number)
{
    mc_buf config = {0}, text = {0};
    mc_fault fault = {0};
    mc_elab_result r = {0};
    mc_str path = mc_strf(x->arena, "tests/reference/%s/config.json", families[number]);
    ck_assert_msg(mc_file_read(path.data, (size_t)1 << 20, &config, &fault) == MOEC_OK, "%s", fault.text);
    mc_import_options options = {.config = mc_str_dup(x->arena, mc_buf_view(&config))};
    if (mc_import(x->arena, &x->sources, &options, &x->diags, &text)) {
        uint32_t file = mc_sources_add(&x->sources, MC_STR("model.moe"), mc_str_dup(x->arena, mc_buf_view(&text)));
        if (mc_elaborate(x->arena, &x->sources, file, NULL, &x->diags, &r)) {
            mc_vec_push(x->arena, &x->modules, r.module);
            mc_module_set_meta(r.module, MC_STR("train"), MC_STR("aux switch; z"));
        }
    }
    mc_buf_fini(&config);
    mc_buf_fini(&text);
    return r.module;
}

static void
token_input(const mc_module *m, int number, mc_arena *arena, mc_ref_tensor *inputs)
{
    ck_assert_uint_eq(mc_module_model(m)->formals.n, 1);
    ck_assert(mc_ref_tensor_init(inputs, MOEC_I32, (int64_t[]){2, 3}, 2, arena));
    for (int64_t i = 0; i < inputs->n; i++) mc_ref_tensor_set(inputs, i, mc_noise_uniform((uint64_t)number, i) * 30);
}

START_TEST(models)
{
    check(make_family, token_input, families[_i], _i, 3, 10);
}
END_TEST

/* ---- random programs ------------------------------------------------------------------------------------------- */

static mc_module *
make_program(mc_ir_fixture *x, int number)
{
    mc_gen_options options = {.seed = (uint64_t)number, .n_blocks = 5, .trainable = true};
    mc_module *m = mc_gen_module(&options, &x->diags);
    if (m) mc_vec_push(x->arena, &x->modules, m);
    return m;
}

static void
program_input(const mc_module *m, int number, mc_arena *arena, mc_ref_tensor *inputs)
{
    mc_gen_inputs(m, (uint64_t)number, 2, 3, arena, inputs);
}

START_TEST(programs)
{
    check(make_program, program_input, "program", _i, 3, 2); /* some have experts that are equally good */
}
END_TEST

/* What cannot be trained is refused, whatever it is made of. */
START_TEST(refusals)
{
    mc_ir_fixture x;
    mc_ir_setup(&x);
    mc_gen_options options = {.seed = (uint64_t)_i, .n_blocks = 1 + _i % 7, .f32 = _i % 4 != 0};
    mc_module *m = mc_gen_module(&options, &x.diags);
    ck_assert_msg(m != NULL, "%s", mc_ir_messages(&x).data);
    mc_pass_options how = mc_pass_options_default();
    how.verify_each = true;
    if (!mc_run_pipeline(m, MC_STR("@train"), &how, &x.diags)) {
        mc_code code = x.diags.list.items[x.diags.list.n - 1].code;
        ck_assert_msg(code == MC_E0508 || code == MC_E0509, "program %d: %s", _i, mc_ir_messages(&x).data);
    }
    mc_module_destroy(m);
    mc_ir_teardown(&x);
}
END_TEST

/* Sanitizers look at our code, of which a few programs reach all; truth is for the plain build. */
#ifdef __SANITIZE_ADDRESS__
enum { N_PROGRAMS = 8, N_REFUSALS = 40 };
#else
enum { N_PROGRAMS = 50, N_REFUSALS = 200 };
#endif

int
main(void)
{
    const char *more = getenv("MOEC_GRAD_PROGRAMS");
    Suite *suite = suite_create("grad models");
    TCase *c = tcase_create("grad models");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, routes, 0, N_ROUTES);
    tcase_add_loop_test(c, models, 0, N_FAMILIES);
    tcase_add_loop_test(c, programs, 0, more ? atoi(more) : N_PROGRAMS);
    tcase_add_loop_test(c, refusals, 0, more ? atoi(more) : N_REFUSALS);
    suite_add_tcase(suite, c);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
