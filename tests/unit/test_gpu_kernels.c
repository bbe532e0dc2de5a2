/* Kernels of the GPU backend compile for every architecture, without warnings, spills and serialised products; on
 * Hopper the kernels that are made for it use its tensor cores and its copy engine. The kernels are those of every text
 * of tests/exec, tests/grad and examples, for inference and training, in several precisions. They are thousands, so not
 * all are compiled: of each .cuh file enough that every word of their calls (a type, a flag, a function) comes by, with
 * the greatest sizes first. MOEC_GPU_KERNELS=pairs wants every two of them, =all compiles all. A table of what
 * each takes is left in the cache directory, as gpu_kernels.txt. */
#include "codegen/gpu/cubin.h"
#include "codegen/gpu/gpu.h"
#include "codegen/gpu/sample.h"
#include "codegen/gpu/select.h"
#include "driver/unit.h"
#include "runtime/base/cache_dir.h"
#include "runtime/base/clock.h"
#include "runtime/base/map.h"
#include "tests/support/exec_case.h"
#include "tests/support/golden.h"
#include "tests/support/messages.h"
#include "tests/support/nvrtc_here.h"

#include <ctype.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct kernel {
    mc_gpu_source source;
    const char *origin; /* the first text that needs it */
    const char *file;
    mc_str call, prelude;
    uint64_t size;   /* the sum of the numbers in the call */
    uint32_t shared; /* dynamic, bytes */
    mc_gpu_built built;
    mc_cubin_kernel code;
    mc_ptxas_report log;
} kernel;

static mc_arena *arena;
static MC_VEC(kernel) kernels;
static mc_map seen;             /* architecture and text */
static mc_map covered;          /* file, architecture and what was compiled of it */
static MC_VEC(mc_str) refusals; /* what could not be planned, and why */
static int n_plans;

static const struct {
    uint32_t number, shared; /* the most shared memory of a block, in bytes */
} archs[] = {{80, 166912}, {89, 101376}, {90, 232448}, {100, 232448}};
enum { N_ARCHS = sizeof archs / sizeof *archs };

/* ---- gathering ------------------------------------------------------------------------------------------------- */

/* What cannot be trained (E0508, E0509) is no matter of the backend. */
static void
refuse(const char *path, const char *variant, const mc_diags *diags)
{
    if (!diags->n_errors) mc_vec_push(arena, &refusals, mc_strf(arena, "%s (%s): for no reason\n", path, variant));
    for (size_t i = 0; i < diags->list.n; i++) {
        const mc_diagnostic *d = &diags->list.items[i];
        bool counts = mc_code_severity(d->code) == MC_SEVERITY_ERROR && d->code != MC_E0508 && d->code != MC_E0509;
        if (!counts) continue;
        mc_str text = mc_strf(arena, "%s (%s): %s: %.*s\n", path, variant, mc_code_name(d->code), MC_FMT(d->text));
        mc_vec_push(arena, &refusals, text);
    }
}

static uint64_t
sum_of_numbers(mc_str text)
{
    uint64_t sum = 0, value = 0;
    bool word = false; /* the 32 of f32 is none */
    for (size_t i = 0; i <= text.len; i++) {
        char c = i < text.len ? text.data[i] : ' ';
        bool digit = isdigit((unsigned char)c);
        if (digit && !word) value = value * 10 + (uint64_t)(c - '0');
        word = isalpha((unsigned char)c) || c == '_' || (word && digit);
        if (digit && !word) continue;
        sum += value;
        value = 0;
    }
    return sum;
}

static void
add_kernel(const mc_plan_kernel *k, uint32_t arch, mc_arena *scratch, const char *origin)
{
    mc_str text = mc_gpu_kernel_text(scratch, k, arch);
    mc_str key = mc_strf(arena, "%u %.*s", arch, MC_FMT(text));
    if (mc_map_has(&seen, key)) return;
    mc_map_set(&seen, key, &seen);
    const mc_gpu_code *c = mc_gpu_kernel_code(k, arch);
    kernel new = {.source = {mc_str_dup(arena, k->name).data, mc_str_dup(arena, text), arch, c->spills_allowed},
                  .origin = origin,
                  .file = c->file,
                  .call = mc_str_dup(arena, c->call),
                  .prelude = mc_str_dup(arena, c->prelude),
                  .size = sum_of_numbers(c->call),
                  .shared = c->shared};
    mc_vec_push(arena, &kernels, new);
}

static void
add_plan(const mc_module *module, const char *path, const char *variant, mc_diags *diags)
{
    mc_arena *scratch = mc_arena_create();
    mc_plan *p = MC_NEW(scratch, mc_plan);
    const char *origin = mc_strf(arena, "%s (%s)", path, variant).data;
    n_plans++;
    if (mc_plan_build(p, scratch, module, &mc_gpu_backend, diags))
        mc_gpu_add_sampling(p);
    else
        refuse(path, variant, diags);
    for (size_t i = 0; i < p->kernels.n; i++)
        for (int a = 0; a < N_ARCHS; a++) add_kernel(p->kernels.items[i], archs[a].number, scratch, origin);
    mc_arena_destroy(scratch);
}

static void
add_case(const char *path, const char *pipeline, const char *compute)
{
    mc_arena *scratch = mc_arena_create();
    mc_diags diags;
    mc_diags_init(&diags, scratch, NULL);
    const char *variant = mc_strf(scratch, "%s %s", pipeline, compute).data;
    mc_exec_case *c = mc_exec_load(path, scratch, &diags);
    if (c) {
        mc_pass_options options = mc_pass_options_default();
        if (*compute) mc_module_set_meta(c->module, MC_STR("precision.compute"), mc_str_of(compute));
        mc_str text = c->module->stage == MC_STAGE_PLAN ? MC_STR("plan-memory") : mc_str_of(pipeline);
        if (mc_run_pipeline(c->module, text, &options, &diags))
            add_plan(c->module, path, variant, &diags);
        else
            refuse(path, variant, &diags);
        mc_exec_close(c);
    } else {
        refuse(path, variant, &diags);
    }
    mc_arena_destroy(scratch);
}

static void
add_model(const char *path, const char *config, bool train, const char *setting)
{
    moec_compile_options options = {.train = train,
                                    .pipeline = train ? "@gpu-train" : "@gpu",
                                    .config = config,
                                    .mesh = "ep = 1, dp = 1, tp = 1",
                                    .settings = &setting,
                                    .n_settings = *setting != 0};
    mc_unit u;
    mc_unit_init(&u, &options);
    const char *variant = mc_strf(u.arena, "%s %s", train ? "train" : "run", setting).data;
    if (mc_unit_load(&u, path) && mc_unit_elaborate(&u) && mc_unit_passes(&u, NULL))
        add_plan(u.module, path, variant, &u.diags);
    else
        refuse(path, variant, &u.diags);
    mc_unit_fini(&u);
}

static const struct {
    const char *family, *config;
} families[] = {{"deepseek_v3", "deepseekv3_tiny"},     {"deepseek_v3", "deepseekv3_noqlora_tiny"},
                {"deepseek_v3", "deepseekv3_fp8_tiny"}, {"mixtral", "mixtral_tiny"},
                {"mixtral", "mixtral_bf16_tiny"},       {"olmoe", "olmoe_tiny"},
                {"qwen2_moe", "qwen2moe_tiny"},         {"qwen3_moe", "qwen3moe_tiny"}};

static void
gather(void)
{
    static const char *const computes[] = {"", "bf16", "f16"};
    static const char *const settings[] = {"", "precision.compute=bf16", "precision.compute=f16"};
    mc_paths exec = mc_golden_find(arena, "tests/exec", ".moir"), grad = mc_golden_find(arena, "tests/grad", ".moir");
    mc_paths models = mc_golden_find(arena, "examples", ".moe");
    for (int v = 0; v < 3; v++) {
        for (size_t i = 0; i < exec.n; i++) {
            if (strstr(exec.items[i], "/plan_packed")) continue; /* it is packed for a CPU already */
            add_case(exec.items[i], "@gpu", computes[v]);
            add_case(exec.items[i], "@gpu-unfused", computes[v]);
        }
        for (size_t i = 0; i < grad.n; i++) add_case(grad.items[i], "@gpu-train", computes[v]);
        for (size_t i = 0; i < models.n; i++) {
            if (strstr(models.items[i], "/families/")) continue; /* they need a config */
            add_model(models.items[i], NULL, false, settings[v]);
            add_model(models.items[i], NULL, true, settings[v]);
        }
        for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
            const char *text = mc_strf(arena, "examples/families/%s.moe", families[i].family).data;
            const char *config = mc_strf(arena, "tests/reference/%s/config.json", families[i].config).data;
            add_model(text, config, false, settings[v]);
        }
    }
}

START_TEST(test_everything_is_planned)
{
    for (size_t i = 0; i < refusals.n; i++) printf("%.*s", MC_FMT(refusals.items[i]));
    fflush(stdout);
    ck_assert_msg(refusals.n == 0, "%zu of %d plans are refused, see above", refusals.n, n_plans);
    ck_assert_uint_gt(kernels.n, 0);
}
END_TEST

/* ---- choosing -------------------------------------------------------------------------------------------------- */

enum { MAX_WORDS = 64 };

/* The words of a text, each with the number of commas before it when wanted. */
static int
words_of(mc_str text, bool with_place, mc_str *out)
{
    int n = 0, place = 0;
    for (size_t i = 0; i < text.len && n < MAX_WORDS;) {
        size_t begin = i;
        while (i < text.len && (isalnum((unsigned char)text.data[i]) || text.data[i] == '_')) i++;
        if (i > begin && !isdigit((unsigned char)text.data[begin]))
            out[n++] = mc_strf(arena, "%d %.*s", with_place ? place : 0, (int)(i - begin), text.data + begin);
        if (i == begin) place += text.data[i++] == ',';
    }
    return n;
}

/* Whether this was not seen before with this file and architecture. */
static bool
is_new(const kernel *k, mc_str a, mc_str b)
{
    mc_str key = mc_strf(arena, "%s %u %.*s, %.*s", k->file, k->source.arch, MC_FMT(a), MC_FMT(b));
    return !mc_map_has(&covered, key) && mc_map_set(&covered, key, &covered);
}

static bool
shows_something_new(const kernel *k, bool pairs)
{
    mc_str call[MAX_WORDS], prelude[MAX_WORDS];
    int n_call = words_of(k->call, true, call), n_prelude = words_of(k->prelude, false, prelude);
    bool new = false;
    if (k->source.arch == 89) return is_new(k, MC_STR("file"), MC_STR("")); /* the code of sm_80, but for its number */
    for (int i = 0; i < n_call; i++)
        for (int j = 0; j <= i; j++)
            if (pairs || i == j) new |= is_new(k, call[i], call[j]);
    for (int i = 0; i < n_prelude; i++) new |= is_new(k, prelude[i], MC_STR("before"));
    return new;
}

static int
greater_first(const void *a, const void *b)
{
    const kernel *x = a, *y = b;
    if (x->size != y->size) return x->size > y->size ? -1 : 1;
    int order = strcmp(x->source.name, y->source.name);
    return order ? order : mc_str_cmp(x->source.text, y->source.text);
}

/* Drops the kernels that show nothing new. */
static void
choose(void)
{
    const char *more = getenv("MOEC_GPU_KERNELS");
    size_t n = 0;
    if (more && strcmp(more, "all") == 0) return;
    bool pairs = more && strcmp(more, "pairs") == 0;
    qsort(kernels.items, kernels.n, sizeof *kernels.items, greater_first);
    mc_map_init(&covered, arena);
    for (size_t i = 0; i < kernels.n; i++) {
        if (shows_something_new(&kernels.items[i], pairs)) kernels.items[n++] = kernels.items[i];
    }
    kernels.n = n;
}

/* ---- compiling ------------------------------------------------------------------------------------------------- */

static void
compile(const char *cache)
{
    mc_diags diags;
    mc_diags_init(&diags, arena, NULL);
    mc_gpu_source *sources = MC_NEW_N(arena, mc_gpu_source, kernels.n + 1);
    mc_gpu_built *built = MC_NEW_N(arena, mc_gpu_built, kernels.n + 1);
    for (size_t i = 0; i < kernels.n; i++) sources[i] = kernels.items[i].source;
    mc_gpu_toolchain t = {.cache = cache};
    double before = mc_seconds();
    bool good = mc_gpu_toolchain_build(&t, sources, kernels.n, arena, &diags, built);
    size_t n_cached = 0;
    for (size_t i = 0; i < kernels.n; i++) {
        kernel *k = &kernels.items[i];
        k->built = built[i];
        k->log = mc_ptxas_read(built[i].log);
        n_cached += built[i].cached;
        if (good) ck_assert_msg(mc_cubin_find(built[i].cubin, k->source.name, &k->code), "%s", k->source.name);
    }
    printf("gpu kernels: %zu of %zu were kept from before, %.1f s\n", n_cached, kernels.n, mc_seconds() - before);
    if (!good) printf("%s", mc_messages(&diags).data);
    fflush(stdout);
    ck_assert_msg(good, "kernels do not compile, see above");
}

/* ---- what is demanded ------------------------------------------------------------------------------------------ */

/* Names of kernels on tensor cores say so. */
static bool
on_cores(const kernel *k)
{
    return strstr(k->call.data, "cores") || strstr(k->call.data, "CORES");
}

static bool
for_hopper(const kernel *k)
{
    return k->source.arch == 90 && strncmp(k->file, "hopper", 6) == 0;
}

static void
complain(mc_buf *out, const kernel *k, const char *what)
{
    mc_buf_printf(out, "%s for %s: %s, from %s\n", k->source.name, mc_gpu_arch_name(k->source.arch), what, k->origin);
}

/* Lines with a warning, but for those of spills that are allowed. */
static bool
warns(const kernel *k)
{
    mc_str log = k->built.log;
    for (size_t at = 0; at < log.len;) {
        size_t n = strcspn(log.data + at, "\n");
        mc_str line = mc_strf(arena, "%.*s", (int)n, log.data + at);
        bool spill = strstr(line.data, "spilled to local memory") != NULL;
        if (strstr(line.data, "warning") && !(spill && k->source.spills_allowed)) return true;
        at += n + 1;
    }
    return false;
}

static uint32_t
shared_limit(uint32_t arch)
{
    for (int i = 0; i < N_ARCHS; i++)
        if (archs[i].number == arch) return archs[i].shared;
    return 0;
}

static void
check_kernel(const kernel *k, mc_buf *out)
{
    if (warns(k)) complain(out, k, k->built.log.data);
    if (k->log.spill_stores + k->log.spill_loads && !k->source.spills_allowed) complain(out, k, "spills");
    if (k->log.serialised) complain(out, k, "wgmma instructions are serialised");
    if (k->code.shared + k->shared > shared_limit(k->source.arch)) complain(out, k, "too much shared memory");
    if (on_cores(k) && !mc_cubin_count(&k->code, MC_GPU_HMMA)) complain(out, k, "no HMMA");
    if (!for_hopper(k)) return;
    if (!mc_cubin_count(&k->code, MC_GPU_HGMMA) && !mc_cubin_count(&k->code, MC_GPU_QGMMA))
        complain(out, k, "no HGMMA");
    if (!mc_cubin_count(&k->code, MC_GPU_UTMALDG)) complain(out, k, "no UTMALDG");
}

static void
write_table(const char *path)
{
    mc_buf out = {0};
    mc_buf_printf(&out, "%-48s %-7s %9s %6s %6s %7s %6s %7s %5s %5s %5s %7s %6s %5s  %s\n", "kernel", "arch",
                  "registers", "stack", "spills", "shared", "bytes", "instr", "HGMMA", "QGMMA", "HMMA", "UTMALDG",
                  "LDGSTS", "LDSM", "from");
    for (size_t i = 0; i < kernels.n; i++) {
        const kernel *k = &kernels.items[i];
        const mc_cubin_kernel *c = &k->code;
        mc_buf_printf(&out, "%-48s %-7s %9u %6u %6u %7u %6zu %7zu %5zu %5zu %5zu %7zu %6zu %5zu  %s\n", k->source.name,
                      mc_gpu_arch_name(k->source.arch), c->registers, c->frame, k->log.spill_stores,
                      c->shared + k->shared, k->built.cubin.len, c->text.len / 16, mc_cubin_count(c, MC_GPU_HGMMA),
                      mc_cubin_count(c, MC_GPU_QGMMA), mc_cubin_count(c, MC_GPU_HMMA),
                      mc_cubin_count(c, MC_GPU_UTMALDG), mc_cubin_count(c, MC_GPU_LDGSTS),
                      mc_cubin_count(c, MC_GPU_LDSM), k->origin);
    }
    mc_fault fault = {{0}};
    ck_assert_msg(mc_file_write(path, out.data, out.len, 0644, &fault) == MOEC_OK, "%s", fault.text);
    printf("gpu kernels: %s\n", path);
    mc_buf_fini(&out);
}

START_TEST(test_everything_compiles)
{
    mc_buf directory = {0}, path = {0}, faults = {0};
    mc_fault fault = {{0}};
    ck_assert_msg(mc_cache_directory(getenv("MOEC_TEST_CUBINS"), "gpu", &directory, &fault) == MOEC_OK, "%s",
                  fault.text);
    compile(directory.data);
    mc_buf_printf(&path, "%s/../gpu_kernels.txt", directory.data);
    write_table(path.data);
    int n_hopper = 0, n_cores = 0;
    for (size_t i = 0; i < kernels.n; i++) {
        const kernel *k = &kernels.items[i];
        check_kernel(k, &faults);
        n_hopper += for_hopper(k);
        n_cores += on_cores(k);
    }
    if (faults.len) printf("%s", faults.data);
    fflush(stdout);
    ck_assert_msg(!faults.len, "kernels are not what they should be, see above");
    ck_assert_msg(n_hopper > 0 && n_cores > 0, "%d kernels for Hopper, %d for tensor cores", n_hopper, n_cores);
    mc_buf_fini(&directory);
    mc_buf_fini(&path);
    mc_buf_fini(&faults);
}
END_TEST

int
main(void)
{
    mallopt(M_TRIM_THRESHOLD, 1 << 30); /* a thousand plans come and go: their memory is used again */
    mallopt(M_MMAP_THRESHOLD, 1 << 25);
    mallopt(M_TOP_PAD, 1 << 24);
    arena = mc_arena_create();
    mc_map_init(&seen, arena);
    gather();
    printf("gpu kernels: %zu kernels and architectures, of which", kernels.n);
    choose();
    printf(" %zu are compiled\n", kernels.n);
    fflush(stdout);
    Suite *suite = suite_create("gpu kernels");
    TCase *tc = tcase_create("gpu kernels");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, test_everything_is_planned);
    mc_nvrtc_test(tc, test_everything_compiles);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    mc_arena_destroy(arena);
    return failed != 0;
}
