/* The toolchain of the GPU backend: how NVRTC is found, what is kept, and what is said.
 * Tests that compile need an NVRTC; without one they are skipped, and named. */
#define _GNU_SOURCE
#include "codegen/gpu/cubin.h"
#include "codegen/gpu/gpu.h"
#include "codegen/gpu/includes.h"
#include "runtime/base/cache_entry.h"
#include "tests/support/golden.h"
#include "tests/support/messages.h"
#include "tests/support/nvrtc_here.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static mc_arena *arena;
static mc_diags diags;
static char folder[64];

static void
set_up(void)
{
    arena = mc_arena_create();
    mc_diags_init(&diags, arena, NULL);
    snprintf(folder, sizeof folder, "/tmp/moec-toolchain-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void
tear_down(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    ck_assert_int_eq(system(command), 0);
    mc_arena_destroy(arena);
}

#define KERNEL(name, body) "extern \"C\" __global__ void " name "(float *p)\n{\n" body "\n}\n"

/* ---- without NVRTC --------------------------------------------------------------------------------------------- */

static const mc_gpu_source plain = {"plain", MC_STR_INIT(KERNEL("plain", "p[threadIdx.x] += 1.0f;")), 80, false};

static const char *
messages(void)
{
    return mc_messages(&diags).data;
}

static void
refuses_library(const char *file, const char *why)
{
    ck_assert_int_eq(setenv("MOEC_NVRTC", file, 1), 0);
    mc_str cubin;
    mc_gpu_toolchain t = {0};
    ck_assert(!mc_gpu_toolchain_compile(&t, &plain, 1, arena, &diags, &cubin));
    ck_assert_int_eq(diags.list.items[diags.list.n - 1].code, MC_E0702);
    ck_assert_msg(strstr(messages(), why) != NULL, "%s", messages());
    ck_assert_ptr_nonnull(strstr(messages(), "pip install nvidia-cuda-nvrtc"));
    ck_assert_str_eq(mc_gpu_toolchain_name(), "");
}

START_TEST(test_no_nvrtc)
{
    refuses_library("/nowhere/libnvrtc.so", "/nowhere/libnvrtc.so");
    refuses_library("libm.so.6", "libm.so.6: has no nvrtcGetErrorString");
}
END_TEST

START_TEST(test_nothing_to_compile_needs_no_nvrtc)
{
    ck_assert_int_eq(setenv("MOEC_NVRTC", "/nowhere/libnvrtc.so", 1), 0);
    mc_str none;
    mc_gpu_toolchain t = {0};
    ck_assert(mc_gpu_toolchain_compile(&t, &plain, 0, arena, &diags, &none));
}
END_TEST

START_TEST(test_entries)
{
    mc_cache_key key = {{0}}, other = {{0}};
    mc_cache_key_add(&key, "ab", 2);
    mc_cache_key_add(&key, "c", 1);
    mc_cache_key_add(&other, "a", 1);
    mc_cache_key_add(&other, "bc", 2);
    ck_assert(memcmp(&key, &other, sizeof key) != 0);
    mc_buf out = {0}, path = {0};
    ck_assert(!mc_cache_get(folder, key, &out));
    mc_cache_put(folder, key, MC_STR("bytes"));
    ck_assert(mc_cache_get(folder, key, &out));
    ck_assert(mc_str_is(mc_buf_view(&out), "bytes"));
    ck_assert(!mc_cache_get(folder, other, &out));
    /* under another key's name, cut short, changed: a miss */
    mc_buf_printf(&path, "%s/", folder);
    mc_cache_key_print(key, &path);
    mc_buf whole = {0};
    ck_assert(mc_file_read(path.data, 1000, &whole, NULL) == MOEC_OK);
    for (size_t n = 0; n < whole.len; n++) {
        ck_assert(mc_file_write(path.data, whole.data, n, 0600, NULL) == MOEC_OK);
        ck_assert(!mc_cache_get(folder, key, &out));
    }
    for (size_t i = 0; i < whole.len; i++) {
        whole.data[i] ^= 4;
        ck_assert(mc_file_write(path.data, whole.data, whole.len, 0600, NULL) == MOEC_OK);
        ck_assert(!mc_cache_get(folder, key, &out));
        whole.data[i] ^= 4;
    }
    mc_cache_put(folder, key, MC_STR("bytes"));
    ck_assert(mc_cache_get(folder, key, &out));
    mc_buf_fini(&whole);
    mc_buf_fini(&path);
    mc_buf_fini(&out);
}
END_TEST

START_TEST(test_includes)
{
    mc_includes none = mc_includes_find(arena, MC_STR("int base;\n"));
    ck_assert_int_eq(none.n, 0);
    mc_includes one = mc_includes_find(arena, MC_STR("#include \"base.cuh\"\n#include \"base.cuh\"\n"));
    ck_assert_int_ge(one.n, 1);
    int n_base = 0;
    for (int i = 0; i < one.n; i++) {
        n_base += strcmp(one.names[i], "base.cuh") == 0;
        ck_assert_uint_eq(strlen(one.texts[i]), one.n_bytes[i]);
    }
    ck_assert_int_eq(n_base, 1);
    ck_assert_int_eq(mc_includes_find(arena, MC_STR("#include \"base.cuhx\"\n#include \"no.cuh\"\n")).n, 0);
    ck_assert_int_eq(mc_includes_find(arena, MC_STR("#include \"")).n, 0);
}
END_TEST

/* ---- with NVRTC ------------------------------------------------------------------------------------------------ */

static void
build(const mc_gpu_toolchain *t, const mc_gpu_source *sources, size_t n, mc_gpu_built *out)
{
    ck_assert_msg(mc_gpu_toolchain_build(t, sources, n, arena, &diags, out), "%s", messages());
}

START_TEST(test_compile)
{
    mc_gpu_toolchain t = {0};
    const uint32_t archs[] = {80, 89, 90, 100};
    for (int i = 0; i < 4; i++) {
        mc_gpu_source s = plain;
        mc_gpu_built b;
        mc_cubin_kernel k;
        s.arch = archs[i];
        build(&t, &s, 1, &b);
        ck_assert(!b.cached);
        ck_assert(mc_cubin_find(b.cubin, "plain", &k));
        ck_assert_uint_gt(k.registers, 0);
        ck_assert_uint_eq(k.frame, 0);
        ck_assert_uint_ge(mc_cubin_count(&k, MC_GPU_LDG), 1);
        ck_assert_uint_ge(mc_cubin_count(&k, MC_GPU_STG), 1);
        ck_assert_uint_eq(mc_cubin_count(&k, MC_GPU_HMMA), 0);
        char used[32];
        snprintf(used, sizeof used, "Used %u registers", k.registers);
        ck_assert_msg(strstr(b.log.data, used) != NULL, "%s is not in %s", used, b.log.data);
        ck_assert_ptr_null(strstr(b.log.data, "Compile time"));
    }
    ck_assert(mc_str_starts(mc_str_of(mc_gpu_toolchain_name()), "NVRTC "));
    ck_assert_int_eq((int)diags.list.n, 0);
}
END_TEST

START_TEST(test_parallel_is_serial)
{
    enum { N = 12 };
    static const uint32_t archs[] = {80, 89, 90, 100};
    mc_gpu_source sources[N];
    mc_gpu_built serial[N], parallel[N];
    for (int i = 0; i < N; i++) {
        mc_str name = mc_strf(arena, "add_%d", i);
        mc_str text =
            mc_strf(arena, "extern \"C\" __global__ void %s(float *p) { p[threadIdx.x] += %d; }\n", name.data, i);
        sources[i] = (mc_gpu_source){name.data, text, archs[i % 4], false};
    }
    mc_gpu_toolchain one = {.n_threads = 1}, four = {.n_threads = 4};
    build(&one, sources, N, serial);
    build(&four, sources, N, parallel);
    for (int i = 0; i < N; i++) {
        ck_assert(mc_str_eq(serial[i].cubin, parallel[i].cubin));
        ck_assert(mc_str_eq(serial[i].log, parallel[i].log));
        mc_cubin_kernel k;
        ck_assert(mc_cubin_find(parallel[i].cubin, sources[i].name, &k));
    }
}
END_TEST

static const mc_gpu_source bad = {"bad", MC_STR_INIT(KERNEL("bad", "p[0] = undefined_name;")), 90, false};

START_TEST(test_bad_kernels)
{
    mc_gpu_source sources[] = {plain, bad, plain, bad};
    sources[3].arch = 80;
    mc_gpu_built built[4];
    mc_gpu_toolchain t = {.n_threads = 3, .cache = folder};
    char first[8192] = "";
    for (int round = 0; round < 2; round++) {
        mc_diags_init(&diags, arena, NULL);
        ck_assert(!mc_gpu_toolchain_build(&t, sources, 4, arena, &diags, built));
        ck_assert_int_eq(diags.n_errors, 2);
        ck_assert_int_eq(diags.list.items[0].code, MC_E0703);
        ck_assert_ptr_nonnull(strstr(diags.list.items[0].text.data, "the kernel bad for sm_90a"));
        ck_assert_ptr_nonnull(strstr(diags.list.items[0].text.data, "undefined_name"));
        ck_assert_ptr_nonnull(strstr(diags.list.items[1].text.data, "the kernel bad for sm_80"));
        if (round) ck_assert_str_eq(messages(), first);
        snprintf(first, sizeof first, "%s", messages());
    }
}
END_TEST

START_TEST(test_missing_include)
{
    mc_gpu_source s = {"far", MC_STR("#include \"no_such_file.cuh\"\n"), 80, false};
    mc_gpu_built b;
    mc_gpu_toolchain t = {0};
    ck_assert(!mc_gpu_toolchain_build(&t, &s, 1, arena, &diags, &b));
    ck_assert_msg(strstr(messages(), "no_such_file.cuh") != NULL, "%s", messages());
}
END_TEST

#define SPILLING                                                                                                       \
    "extern \"C\" __global__ void __launch_bounds__(1024, 2) full(float *p)\n{\n    float v[100];\n"                   \
    "#pragma unroll\n    for (int i = 0; i < 100; i++) v[i] = p[i * 1024 + threadIdx.x];\n    __syncthreads();\n"      \
    "#pragma unroll\n    for (int i = 0; i < 100; i++) p[(99 - i) * 1024 + threadIdx.x] = v[i] * v[i * 7 % 100];\n}\n"

START_TEST(test_spills_are_remarked)
{
    mc_gpu_source s = {"full", MC_STR(SPILLING), 90, false};
    mc_gpu_built b;
    mc_gpu_toolchain t = {.cache = folder};
    for (int round = 0; round < 2; round++) { /* from the cache too */
        mc_diags_init(&diags, arena, NULL);
        build(&t, &s, 1, &b);
        ck_assert_int_eq(b.cached, round);
        ck_assert_int_eq((int)diags.list.n, 1);
        ck_assert_int_eq(diags.list.items[0].code, MC_R0701);
        ck_assert_uint_gt(mc_ptxas_read(b.log).spill_stores, 0);
        mc_cubin_kernel k;
        ck_assert(mc_cubin_find(b.cubin, "full", &k));
        ck_assert_uint_gt(k.frame, 0);
        ck_assert_uint_gt(mc_cubin_count(&k, MC_GPU_LDL), 0);
        ck_assert_uint_gt(mc_cubin_count(&k, MC_GPU_STL), 0);
    }
    s.spills_allowed = true;
    mc_diags_init(&diags, arena, NULL);
    build(&t, &s, 1, &b);
    ck_assert_int_eq((int)diags.list.n, 0);
}
END_TEST

/* ---- the cache ------------------------------------------------------------------------------------------------- */

START_TEST(test_cache)
{
    mc_gpu_toolchain t = {.cache = folder};
    mc_gpu_source s = plain;
    mc_gpu_built first, again, other;
    build(&t, &s, 1, &first);
    build(&t, &s, 1, &again);
    ck_assert(!first.cached && again.cached);
    ck_assert(mc_str_eq(first.cubin, again.cubin) && mc_str_eq(first.log, again.log));
    s.arch = 90;
    build(&t, &s, 1, &other);
    ck_assert(!other.cached && !mc_str_eq(first.cubin, other.cubin));
    s.arch = 80;
    s.text = MC_STR(KERNEL("plain", "p[threadIdx.x] += 2.0f;"));
    build(&t, &s, 1, &other);
    ck_assert(!other.cached && !mc_str_eq(first.cubin, other.cubin));
    build(&t, &plain, 1, &again);
    ck_assert(again.cached);
}
END_TEST

START_TEST(test_damaged_cache)
{
    mc_gpu_toolchain t = {.cache = folder};
    mc_gpu_built first, again;
    build(&t, &plain, 1, &first);
    mc_paths files = mc_golden_find(arena, folder, "");
    ck_assert_uint_eq(files.n, 2); /* the cubin, and which NVRTC it was */
    for (size_t i = 0; i < files.n; i++) {
        mc_buf b = {0};
        ck_assert(mc_file_read(files.items[i], 1 << 20, &b, NULL) == MOEC_OK);
        b.data[b.len - 1] ^= 1;
        ck_assert(mc_file_write(files.items[i], b.data, b.len, 0600, NULL) == MOEC_OK);
        mc_buf_fini(&b);
    }
    build(&t, &plain, 1, &again);
    ck_assert(!again.cached && mc_str_eq(first.cubin, again.cubin));
    build(&t, &plain, 1, &again);
    ck_assert(again.cached && mc_str_eq(first.cubin, again.cubin));
    /* a folder that cannot be written is no cache, and no error */
    mc_gpu_toolchain nowhere = {.cache = "/nowhere/at/all"};
    build(&nowhere, &plain, 1, &again);
    ck_assert(!again.cached && mc_str_eq(first.cubin, again.cubin));
}
END_TEST

static bool
library_is_loaded(void)
{
    mc_buf maps = {0};
    ck_assert(mc_file_read("/proc/self/maps", 16 << 20, &maps, NULL) == MOEC_OK);
    bool loaded = strstr(maps.data, "nvrtc") != NULL;
    mc_buf_fini(&maps);
    return loaded;
}

START_TEST(test_cached_code_needs_no_nvrtc)
{
    mc_gpu_toolchain t = {.cache = folder};
    mc_gpu_built b;
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) _exit(mc_gpu_toolchain_build(&t, &plain, 1, arena, &diags, &b) && library_is_loaded() ? 0 : 1);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ck_assert(!library_is_loaded());
    build(&t, &plain, 1, &b);
    ck_assert(b.cached);
    ck_assert(mc_str_starts(mc_str_of(mc_gpu_toolchain_name()), "NVRTC "));
    ck_assert(!library_is_loaded());
}
END_TEST

START_TEST(test_dump)
{
    char inner[96];
    snprintf(inner, sizeof inner, "%s/a/b", folder);
    mc_gpu_toolchain t = {.dump_dir = inner};
    mc_gpu_built built[2];
    const mc_gpu_source sources[] = {plain, bad};
    ck_assert(!mc_gpu_toolchain_build(&t, sources, 2, arena, &diags, built));
    static const char *const files[] = {"plain.sm_80.cu",  "plain.sm_80.ptx", "plain.sm_80.cubin",
                                        "plain.sm_80.txt", "bad.sm_90a.cu",   "bad.sm_90a.txt"};
    static const char *const contain[] = {"p[threadIdx.x] += 1.0f", ".target sm_80", "ELF", "registers ",
                                          "undefined_name",         "undefined_name"};
    for (int i = 0; i < 6; i++) {
        mc_buf path = {0}, text = {0};
        mc_buf_printf(&path, "%s/%s", inner, files[i]);
        ck_assert_msg(mc_file_read(path.data, 1 << 20, &text, NULL) == MOEC_OK, "%s", path.data);
        ck_assert_msg(strstr(text.data, contain[i]) != NULL, "%s has no '%s': %s", files[i], contain[i], text.data);
        mc_buf_fini(&path);
        mc_buf_fini(&text);
    }
    t.dump_dir = "/proc/nowhere";
    mc_diags_init(&diags, arena, NULL);
    ck_assert(!mc_gpu_toolchain_build(&t, &plain, 1, arena, &diags, built));
    ck_assert_int_eq(diags.list.items[0].code, MC_E0910);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("gpu toolchain");
    TCase *tc = tcase_create("gpu toolchain");
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, test_no_nvrtc);
    tcase_add_test(tc, test_nothing_to_compile_needs_no_nvrtc);
    tcase_add_test(tc, test_entries);
    tcase_add_test(tc, test_includes);
    mc_nvrtc_test(tc, test_compile);
    mc_nvrtc_test(tc, test_parallel_is_serial);
    mc_nvrtc_test(tc, test_bad_kernels);
    mc_nvrtc_test(tc, test_missing_include);
    mc_nvrtc_test(tc, test_spills_are_remarked);
    mc_nvrtc_test(tc, test_cache);
    mc_nvrtc_test(tc, test_damaged_cache);
    mc_nvrtc_test(tc, test_cached_code_needs_no_nvrtc);
    mc_nvrtc_test(tc, test_dump);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
