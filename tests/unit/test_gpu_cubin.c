/* What is read out of a cubin and of the compiler's log: from a cubin made here, byte by byte, and its damaged forms;
 * and from kernels whose instructions are known, which need an NVRTC and are skipped by name without one. */
#include "codegen/gpu/cubin.h"
#include "codegen/gpu/gpu.h"
#include "tests/support/messages.h"
#include "tests/support/nvrtc_here.h"

#include <stdlib.h>
#include <string.h>

static mc_arena *arena;
static mc_diags diags;

static void
set_up(void)
{
    arena = mc_arena_create();
    mc_diags_init(&diags, arena, NULL);
}

static void
tear_down(void)
{
    mc_arena_destroy(arena);
}

START_TEST(test_log)
{
    mc_ptxas_report r = mc_ptxas_read(
        MC_STR("ptxas warning : Registers are spilled to local memory in function 'k', 1496 bytes spill "
               "stores, 1500 bytes spill loads\n"
               "ptxas         .     1160 bytes stack frame, 1496 bytes spill stores, 1500 bytes spill loads\n"
               "ptxas info    : Used 32 registers\n"));
    ck_assert_uint_eq(r.spill_stores, 1496);
    ck_assert_uint_eq(r.spill_loads, 1500);
    ck_assert_uint_eq(r.n_warnings, 1);
    ck_assert(!r.serialised);
    r = mc_ptxas_read(MC_STR("ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are "
                             "serialized due to insufficient register resources"));
    ck_assert(r.serialised);
    r = mc_ptxas_read(MC_STR(" bytes spill stores 99999999999999999999 bytes spill loads"));
    ck_assert_uint_eq(r.spill_stores, 0);
    ck_assert_uint_gt(r.spill_loads, 0);
    r = mc_ptxas_read((mc_str){0});
    ck_assert_uint_eq(r.n_warnings, 0);
}
END_TEST

/* ---- a cubin made by hand -------------------------------------------------------------------------------------- */

static void
put(mc_buf *b, uint64_t value, int n_bytes)
{
    for (int i = 0; i < n_bytes; i++) mc_buf_putc(b, i < 8 ? (char)(value >> 8 * i) : 0);
}

enum { N_SECTIONS = 8 };
static const char section_names[] = "\0.shstrtab\0.strtab\0.symtab\0.nv.info\0.text.k\0.nv.shared.k\0.nv.constant0.k";

static uint32_t
name_at(const char *name)
{
    for (uint32_t i = 0; i < sizeof section_names; i++)
        if (strcmp(section_names + i, name) == 0) return i;
    ck_abort_msg("%s", name);
}

static void
section_row(mc_buf *table, const char *name, uint32_t type, uint64_t offset, uint64_t n_bytes)
{
    put(table, name_at(name), 4);
    put(table, type, 4);
    put(table, 0, 16);
    put(table, offset, 8);
    put(table, n_bytes, 8);
    put(table, 0, 24);
}

/* 40 registers, 24 bytes of local memory, 256 bytes of shared memory; three instructions, two of them HMMA. */
static mc_str
made_cubin(void)
{
    mc_buf body = {0}, table = {0}, head = {0};
    section_row(&table, "", 0, 0, 0);
#define SECTION(name, type, ...)                                                                                       \
    do {                                                                                                               \
        size_t at = body.len;                                                                                          \
        __VA_ARGS__;                                                                                                   \
        section_row(&table, name, type, 64 + at, body.len - at);                                                       \
    } while (0)
    SECTION(".shstrtab", 3, mc_buf_write(&body, section_names, sizeof section_names));
    SECTION(".strtab", 3, mc_buf_write(&body, "\0k", 3));
    SECTION(".symtab", 2, (put(&body, 0, 24), put(&body, 1, 4), put(&body, 0x12, 1), put(&body, 0, 19)));
    SECTION(".nv.info", 0x70000000,
            (put(&body, 0x082F04, 4), put(&body, 1, 4), put(&body, 40, 4), put(&body, 0x0301, 4),
             put(&body, 0x081104, 4), put(&body, 1, 4), put(&body, 24, 4)));
    SECTION(".text.k", 1,
            (put(&body, 0xFF23C, 8), put(&body, 0x23C, 8), put(&body, 0x7986, 8), put(&body, 0, 8),
             put(&body, 0x123C, 8), put(&body, 0, 8)));
#undef SECTION
    section_row(&table, ".nv.shared.k", 8, 0, 256);
    section_row(&table, ".nv.constant0.k", 1, 64, 16);
    mc_buf_write(&head, "\177ELF\2\1\1\0\0\0\0\0\0\0\0\0", 16);
    put(&head, 2, 2);
    put(&head, 190, 2);
    put(&head, 1, 4);
    put(&head, 0, 16);
    put(&head, 64 + body.len, 8);
    put(&head, 0, 10);
    put(&head, 64, 2);
    put(&head, N_SECTIONS, 2);
    put(&head, 1, 2);
    ck_assert_uint_eq(head.len, 64);
    mc_buf_str(&head, mc_buf_view(&body));
    mc_buf_str(&head, mc_buf_view(&table));
    mc_str cubin = mc_str_dup(arena, mc_buf_view(&head));
    mc_buf_fini(&head);
    mc_buf_fini(&body);
    mc_buf_fini(&table);
    return cubin;
}

START_TEST(test_made_cubin)
{
    mc_cubin_kernel k;
    mc_str cubin = made_cubin();
    ck_assert(mc_cubin_find(cubin, "k", &k));
    ck_assert_uint_eq(k.registers, 40);
    ck_assert_uint_eq(k.frame, 24);
    ck_assert_uint_eq(k.shared, 256);
    ck_assert_uint_eq(k.constants, 16);
    ck_assert_uint_eq(mc_cubin_count(&k, MC_GPU_HMMA), 2);
    ck_assert_uint_eq(mc_cubin_count(&k, MC_GPU_STG), 1);
    ck_assert(!mc_cubin_find(cubin, "kk", &k));
    ck_assert(!mc_cubin_find(cubin, "", &k));
}
END_TEST

/* Every prefix, and every byte changed in a few ways, in memory of exactly that size: sanitizers see what is read. */
static void
torture(mc_str cubin, const char *kernel, size_t step)
{
    mc_cubin_kernel k;
    static const unsigned char masks[] = {0x01, 0x80, 0xFF};
    for (size_t n = 0; n < cubin.len; n += n < 256 ? 1 : step) {
        char *copy = malloc(n ? n : 1);
        memcpy(copy, cubin.data, n);
        if (mc_cubin_find((mc_str){copy, n}, kernel, &k)) mc_cubin_count(&k, MC_GPU_HGMMA);
        free(copy);
    }
    char *copy = malloc(cubin.len);
    memcpy(copy, cubin.data, cubin.len);
    for (size_t i = 0; i < cubin.len; i += i < 256 ? 1 : step)
        for (size_t m = 0; m < sizeof masks; m++) {
            copy[i] = (char)(copy[i] ^ masks[m]);
            if (mc_cubin_find((mc_str){copy, cubin.len}, kernel, &k)) mc_cubin_count(&k, MC_GPU_HGMMA);
            copy[i] = cubin.data[i];
        }
    free(copy);
}

START_TEST(test_damaged_cubin)
{
    torture(made_cubin(), "k", 1);
    mc_cubin_kernel k;
    ck_assert(!mc_cubin_find((mc_str){0}, "k", &k));
    ck_assert(!mc_cubin_find(MC_STR("\177ELF\2\1"), "k", &k));
}
END_TEST

/* ---- kernels whose instructions are known ---------------------------------------------------------------------- */

#define KERNEL(name, body) "extern \"C\" __global__ void " name "(float *p)\n{\n" body "\n}\n"
#define MMA                                                                                                            \
    "float d[4] = {0, 0, 0, 0}; unsigned r[4] = {threadIdx.x, 1, 2, 3};\n"                                             \
    "asm volatile(\"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%4, "     \
    "%5}, {%0, %1, %2, %3};\" : \"+f\"(d[0]), \"+f\"(d[1]), \"+f\"(d[2]), \"+f\"(d[3]) : \"r\"(r[0]), \"r\"(r[1]), "   \
    "\"r\"(r[2]), \"r\"(r[3]));\n p[threadIdx.x] = d[0] + d[1] + d[2] + d[3];"
#define LDSM                                                                                                           \
    "__shared__ __align__(16) float s[256]; s[threadIdx.x] = p[threadIdx.x]; __syncthreads(); unsigned r;\n"           \
    "unsigned at = (unsigned)__cvta_generic_to_shared(&s[threadIdx.x * 4]);\n"                                         \
    "asm volatile(\"ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\" : \"=r\"(r) : \"r\"(at));\n"                \
    "p[threadIdx.x] = __uint_as_float(r);"
#define CP_ASYNC                                                                                                       \
    "__shared__ __align__(16) float s[1024];\n"                                                                        \
    "unsigned at = (unsigned)__cvta_generic_to_shared(&s[threadIdx.x * 4]);\n"                                         \
    "asm volatile(\"cp.async.cg.shared.global [%0], [%1], 16;\" :: \"r\"(at), \"l\"(p + threadIdx.x * 4));\n"          \
    "asm volatile(\"cp.async.wait_all;\" ::: \"memory\"); __syncthreads(); p[threadIdx.x] = s[1023 - threadIdx.x];"
#define WGMMA                                                                                                          \
    "float d[4] = {0, 0, 0, 0}; unsigned long long a = threadIdx.x;\n"                                                 \
    "asm volatile(\"wgmma.fence.sync.aligned;\" ::: \"memory\");\n"                                                    \
    "asm volatile(\"wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %4, 1, 1, 1, 0, 0;\" "   \
    ": \"+f\"(d[0]), \"+f\"(d[1]), \"+f\"(d[2]), \"+f\"(d[3]) : \"l\"(a));\n"                                          \
    "asm volatile(\"wgmma.commit_group.sync.aligned;\" ::: \"memory\");\n"                                             \
    "asm volatile(\"wgmma.wait_group.sync.aligned 0;\" ::: \"memory\"); p[threadIdx.x] = d[0] + d[1] + d[2] + d[3];"
#define WGMMA_F8                                                                                                       \
    "float d[4] = {0, 0, 0, 0}; unsigned long long a = threadIdx.x;\n"                                                 \
    "asm volatile(\"wgmma.fence.sync.aligned;\" ::: \"memory\");\n"                                                    \
    "asm volatile(\"wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%0, %1, %2, %3}, %4, %4, 1, 1, 1;\" "         \
    ": \"+f\"(d[0]), \"+f\"(d[1]), \"+f\"(d[2]), \"+f\"(d[3]) : \"l\"(a));\n"                                          \
    "asm volatile(\"wgmma.commit_group.sync.aligned;\" ::: \"memory\");\n"                                             \
    "asm volatile(\"wgmma.wait_group.sync.aligned 0;\" ::: \"memory\"); p[threadIdx.x] = d[0] + d[1] + d[2] + d[3];"
#define TMA                                                                                                            \
    "__shared__ __align__(128) float s[1024]; __shared__ unsigned long long bar;\n"                                    \
    "unsigned at = (unsigned)__cvta_generic_to_shared(s), b = (unsigned)__cvta_generic_to_shared(&bar);\n"             \
    "if (threadIdx.x == 0) asm volatile(\"cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::"      \
    "bytes [%0], [%1, {%2, %3}], [%4];\" :: \"r\"(at), \"l\"(p), \"r\"(0), \"r\"(0), \"r\"(b) : \"memory\");\n"        \
    "__syncthreads(); p[threadIdx.x] = s[threadIdx.x];"

static const struct known {
    mc_gpu_source source;
    uint32_t opcode;
} known[] = {
    {{"mma", MC_STR_INIT(KERNEL("mma", MMA)), 80, false}, MC_GPU_HMMA},
    {{"mma", MC_STR_INIT(KERNEL("mma", MMA)), 89, false}, MC_GPU_HMMA},
    {{"mma", MC_STR_INIT(KERNEL("mma", MMA)), 90, false}, MC_GPU_HMMA},
    {{"mma", MC_STR_INIT(KERNEL("mma", MMA)), 100, false}, MC_GPU_HMMA},
    {{"ldsm", MC_STR_INIT(KERNEL("ldsm", LDSM)), 80, false}, MC_GPU_LDSM},
    {{"ldsm", MC_STR_INIT(KERNEL("ldsm", LDSM)), 90, false}, MC_GPU_LDSM},
    {{"copy", MC_STR_INIT(KERNEL("copy", CP_ASYNC)), 80, false}, MC_GPU_LDGSTS},
    {{"copy", MC_STR_INIT(KERNEL("copy", CP_ASYNC)), 90, false}, MC_GPU_LDGSTS},
    {{"shuffle", MC_STR_INIT(KERNEL("shuffle", "p[threadIdx.x] = __shfl_xor_sync(~0u, p[threadIdx.x], 1);")), 90,
      false},
     MC_GPU_SHFL},
    {{"root", MC_STR_INIT(KERNEL("root", "asm volatile(\"rsqrt.approx.f32 %0, %0;\" : \"+f\"(p[threadIdx.x]));")), 90,
      false},
     MC_GPU_MUFU},
    {{"wgmma", MC_STR_INIT(KERNEL("wgmma", WGMMA)), 90, false}, MC_GPU_HGMMA},
    {{"wgmma8", MC_STR_INIT(KERNEL("wgmma8", WGMMA_F8)), 90, false}, MC_GPU_QGMMA},
    {{"tma", MC_STR_INIT(KERNEL("tma", TMA)), 90, false}, MC_GPU_UTMALDG},
};
enum { N_KNOWN = sizeof known / sizeof *known };

START_TEST(test_opcodes)
{
    mc_gpu_source sources[N_KNOWN];
    mc_str cubins[N_KNOWN];
    mc_gpu_toolchain t = {0};
    for (int i = 0; i < N_KNOWN; i++) sources[i] = known[i].source;
    bool good = mc_gpu_toolchain_compile(&t, sources, N_KNOWN, arena, &diags, cubins);
    ck_assert_msg(good, "%s", mc_messages(&diags).data);
    for (int i = 0; i < N_KNOWN; i++) {
        mc_cubin_kernel k;
        ck_assert(mc_cubin_find(cubins[i], sources[i].name, &k));
        for (int o = 0; o < N_KNOWN; o++) {
            if (known[o].opcode == MC_GPU_LDSM || known[o].opcode == MC_GPU_MUFU) continue;
            bool has = mc_cubin_count(&k, known[o].opcode) > 0;
            ck_assert_msg(has == (known[i].opcode == known[o].opcode), "%s for %s: %03x", sources[i].name,
                          mc_gpu_arch_name(sources[i].arch), known[o].opcode);
        }
        ck_assert_uint_ge(mc_cubin_count(&k, known[i].opcode), 1);
        torture(cubins[i], sources[i].name, 97);
    }
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("gpu cubin");
    TCase *tc = tcase_create("gpu cubin");
    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, test_log);
    tcase_add_test(tc, test_made_cubin);
    tcase_add_test(tc, test_damaged_cubin);
    mc_nvrtc_test(tc, test_opcodes);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
