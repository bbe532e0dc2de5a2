/* host_cpu: questions to the processor (one table of cpuid bits) and to the kernel (affinity, cgroup quota). */
#define _GNU_SOURCE
#include "runtime/host_cpu.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

enum { EAX, EBX, ECX, EDX };
/* What the operating system must save on a context switch for the feature to be usable (bits of XCR0). */
enum { XMM = 0, YMM = 0x6, ZMM = 0xE6, TILES = 0x60000 };

typedef struct feature {
    const char *name;
    uint32_t leaf, subleaf;
    int reg, bit;
    uint32_t state;
} feature;

/* clang-format off */
static const feature features_x86[] = {
    {"sse3", 1, 0, ECX, 0, XMM},          {"ssse3", 1, 0, ECX, 9, XMM},          {"sse4.1", 1, 0, ECX, 19, XMM},
    {"sse4.2", 1, 0, ECX, 20, XMM},       {"popcnt", 1, 0, ECX, 23, XMM},        {"movbe", 1, 0, ECX, 22, XMM},
    {"fma", 1, 0, ECX, 12, YMM},          {"avx", 1, 0, ECX, 28, YMM},           {"f16c", 1, 0, ECX, 29, YMM},
    {"cx16", 1, 0, ECX, 13, XMM},         {"bmi", 7, 0, EBX, 3, XMM},            {"bmi1", 7, 0, EBX, 3, XMM},
    {"avx2", 7, 0, EBX, 5, YMM},          {"bmi2", 7, 0, EBX, 8, XMM},           {"avx512f", 7, 0, EBX, 16, ZMM},
    {"avx512dq", 7, 0, EBX, 17, ZMM},     {"avx512cd", 7, 0, EBX, 28, ZMM},      {"avx512bw", 7, 0, EBX, 30, ZMM},
    {"avx512vl", 7, 0, EBX, 31, ZMM},     {"avx512vbmi", 7, 0, ECX, 1, ZMM},     {"avx512vnni", 7, 0, ECX, 11, ZMM},
    {"avx512fp16", 7, 0, EDX, 23, ZMM},   {"amx-bf16", 7, 0, EDX, 22, TILES},    {"amx-tile", 7, 0, EDX, 24, TILES},
    {"amx-int8", 7, 0, EDX, 25, TILES},   {"avxvnni", 7, 1, EAX, 4, YMM},        {"avx512bf16", 7, 1, EAX, 5, ZMM},
    {"lzcnt", 0x80000001, 0, ECX, 5, XMM},
};
/* clang-format on */

static bool
has_feature(mc_str name, bool *known)
{
    for (size_t i = 0; i < sizeof features_x86 / sizeof *features_x86; i++) {
        const feature *f = &features_x86[i];
        if (!mc_str_is(name, f->name)) continue;
        *known = true;
        uint32_t r[4], xcr0 = 0, high;
        if (f->state) {
            if (!__get_cpuid_count(1, 0, &r[0], &r[1], &r[2], &r[3]) || !(r[ECX] >> 27 & 1)) return false;
            __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
            if ((xcr0 & f->state) != f->state) return false;
        }
        if (!__get_cpuid_count(f->leaf, f->subleaf, &r[0], &r[1], &r[2], &r[3])) return false;
        return r[f->reg] >> f->bit & 1;
    }
    *known = false;
    return false;
}
#elif defined(__aarch64__)
#include <sys/auxv.h>

/* clang-format off */
static const struct { const char *name; unsigned long type; int bit; } features_arm[] = {
    {"fp-armv8", AT_HWCAP, 0}, {"neon", AT_HWCAP, 1}, {"fullfp16", AT_HWCAP, 10}, {"dotprod", AT_HWCAP, 20},
    {"sve", AT_HWCAP, 22},     {"i8mm", AT_HWCAP2, 13}, {"bf16", AT_HWCAP2, 14},
};
/* clang-format on */

static bool
has_feature(mc_str name, bool *known)
{
    for (size_t i = 0; i < sizeof features_arm / sizeof *features_arm; i++) {
        *known = mc_str_is(name, features_arm[i].name);
        if (*known) return getauxval(features_arm[i].type) >> features_arm[i].bit & 1;
    }
    return false;
}
#else
static bool
has_feature(mc_str name, bool *known)
{
    (void)name;
    *known = false;
    return false;
}
#endif

moec_status
mc_host_has(const char *features, const char *cpu, const char *model, mc_fault *error)
{
    char missing[256] = "";
    size_t len = 0;
    for (const char *p = features; *p;) {
        size_t n = strcspn(p, ",");
        mc_str name = {p, n};
        p += n + (p[n] == ',');
        if (name.len && name.data[0] == '+') name = mc_str_slice(name, 1, name.len);
        bool known;
        if (!name.len || has_feature(name, &known)) continue;
        if (len < sizeof missing)
            len += (size_t)snprintf(missing + len, sizeof missing - len, "%s%.*s%s", len ? ", " : "", MC_FMT(name),
                                    known ? "" : " (unknown here)");
    }
    if (!missing[0]) return MOEC_OK;
    return mc_fail(error, MOEC_ERR_UNSUPPORTED,
                   "%s was compiled for %s and needs %s, which this processor (or its operating system) does not have; "
                   "compile it again on this machine, or with --target for a lesser processor",
                   model, cpu, missing);
}

/* quota / period of a cgroup-v2 cpu.max file ("150000 100000" or "max 100000"), rounded up; 0: no limit. */
static uint32_t
read_cpu_max(const char *path)
{
    FILE *f = fopen(path, "re");
    long long quota = 0, period = 0;
    if (!f) return 0;
    int n = fscanf(f, "%lld %lld", &quota, &period);
    fclose(f);
    if (n != 2 || quota <= 0 || period <= 0) return 0;
    return (uint32_t)((quota + period - 1) / period);
}

static long long
read_number(const char *directory, const char *file)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    FILE *f = fopen(path, "re");
    long long v = -1;
    if (!f) return -1;
    if (fscanf(f, "%lld", &v) != 1) v = -1;
    fclose(f);
    return v;
}

/* The tightest quota from the process's own group up to the root: a limit on a parent binds the child too. */
static uint32_t
cgroup_v2_limit(const char *group)
{
    char path[600];
    uint32_t limit = 0;
    size_t len = strlen(group);
    if (len > 400) return 0;
    for (;;) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%.*s/cpu.max", (int)len, group);
        uint32_t here = read_cpu_max(path);
        if (here && (!limit || here < limit)) limit = here;
        if (len == 0) return limit;
        while (len && group[len - 1] != '/') len--;
        if (len) len--;
    }
}

static uint32_t
cgroup_limit(void)
{
    uint32_t limit = 0;
    FILE *f = fopen("/proc/self/cgroup", "re");
    char line[512];
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "0::", 3) == 0) limit = cgroup_v2_limit(line + 3);
    }
    if (f) fclose(f);
    if (!limit) {
        long long quota = read_number("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us");
        long long period = read_number("/sys/fs/cgroup/cpu", "cpu.cfs_period_us");
        if (quota > 0 && period > 0) limit = (uint32_t)((quota + period - 1) / period);
    }
    return limit;
}

uint32_t
mc_host_cpus(void)
{
    cpu_set_t set;
    uint32_t n = 1, limit = cgroup_limit();
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) n = (uint32_t)CPU_COUNT(&set);
    return limit && limit < n ? limit : n;
}
