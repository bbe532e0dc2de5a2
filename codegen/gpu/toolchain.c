/* Every source becomes a job with buffers of its own. Jobs that the cache does not have are compiled by a few threads,
 * which take them in order; what they have to say is said afterwards, in the order of the sources. */
#define _GNU_SOURCE
#include "codegen/gpu/toolchain.h"

#include "codegen/gpu/cubin.h"
#include "codegen/gpu/gpu.h"
#include "codegen/gpu/includes.h"
#include "codegen/gpu/nvrtc_identity.h"
#include "codegen/gpu/toolchain_dump.h"
#include "runtime/base/cache_entry.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { MAX_LOG_SHOWN = 4000, MAX_THREADS = 64, N_OPTIONS = 5, CACHE_FORMAT = 1 };

typedef struct job {
    mc_nvrtc_job program;
    const char *options[N_OPTIONS];
    mc_includes includes;
    mc_cache_key key;
    bool cached, good;
    mc_buf cubin, ptx, log;
} job;

typedef struct build {
    const mc_gpu_toolchain *t;
    const char *cache; /* t->cache, or NULL */
    const mc_gpu_source *sources;
    job *jobs;
    size_t n;
    const mc_nvrtc *nvrtc;
    atomic_size_t next;
} build;

/* ---- the name ------------------------------------------------------------------------------------------------ */

static atomic_int version_used; /* major * 1000 + minor of the last compile; 0: none yet */

const char *
mc_gpu_toolchain_name(void)
{
    static _Thread_local char name[32];
    int version = atomic_load(&version_used);
    if (!version) {
        const char *why;
        const mc_nvrtc *n = mc_nvrtc_get(&why);
        if (!n) return "";
        version = n->major * 1000 + n->minor;
    }
    snprintf(name, sizeof name, "NVRTC %d.%d", version / 1000, version % 1000);
    return name;
}

/* ---- jobs ---------------------------------------------------------------------------------------------------- */

static void
prepare(const mc_gpu_toolchain *t, const mc_gpu_source *source, mc_arena *arena, job *j)
{
    j->includes = mc_includes_find(arena, source->text);
    j->options[0] = mc_strf(arena, "--gpu-architecture=%s", mc_gpu_arch_name(source->arch)).data;
    j->options[1] = "--std=c++17";
    j->options[2] = "-default-device";
    j->options[3] = "--ptxas-options=-v"; /* with the next one in one option both are lost */
    j->options[4] = "--ptxas-options=--warn-on-spills";
    j->program = (mc_nvrtc_job){.name = mc_strf(arena, "%s.cu", source->name).data,
                                .text = mc_str_dup(arena, source->text).data,
                                .headers = j->includes.texts,
                                .include_names = j->includes.names,
                                .n_headers = j->includes.n,
                                .options = j->options,
                                .n_options = N_OPTIONS,
                                .wants_ptx = t->dump_dir != NULL};
}

static mc_cache_key
key_of(const job *j, const mc_nvrtc_identity *id)
{
    int64_t numbers[] = {
        CACHE_FORMAT, id->major, id->minor, (int64_t)id->n_bytes, (int64_t)id->seconds, (int64_t)id->nanoseconds};
    mc_cache_key key = {{0}};
    mc_cache_key_add(&key, numbers, sizeof numbers);
    mc_cache_key_add(&key, id->path.data, id->path.len);
    for (int i = 0; i < N_OPTIONS; i++) mc_cache_key_add(&key, j->options[i], strlen(j->options[i]));
    for (int i = 0; i < j->includes.n; i++) {
        mc_cache_key_add(&key, j->includes.names[i], strlen(j->includes.names[i]));
        mc_cache_key_add(&key, j->includes.texts[i], j->includes.n_bytes[i]);
    }
    mc_cache_key_add(&key, j->program.name, strlen(j->program.name));
    mc_cache_key_add(&key, j->program.text, strlen(j->program.text));
    return key;
}

/* ---- the cache: the length of the log, the log, the cubin ---------------------------------------------------- */

static bool
take_from_cache(const char *cache, job *j)
{
    mc_buf entry = {0};
    uint64_t n_log;
    bool found = mc_cache_get(cache, j->key, &entry) && entry.len > sizeof n_log;
    if (found) {
        memcpy(&n_log, entry.data, sizeof n_log);
        mc_str rest = mc_str_slice(mc_buf_view(&entry), sizeof n_log, entry.len);
        found = n_log < rest.len;
        if (found) mc_buf_str(&j->log, mc_str_slice(rest, 0, n_log));
        if (found) mc_buf_str(&j->cubin, mc_str_slice(rest, n_log, rest.len));
    }
    mc_buf_fini(&entry);
    return found;
}

static void
put_into_cache(const char *cache, const job *j)
{
    mc_buf entry = {0};
    uint64_t n_log = j->log.len;
    mc_buf_write(&entry, &n_log, sizeof n_log);
    mc_buf_str(&entry, mc_buf_view(&j->log));
    mc_buf_str(&entry, mc_buf_view(&j->cubin));
    mc_cache_put(cache, j->key, mc_buf_view(&entry));
    mc_buf_fini(&entry);
}

/* Sets every key; true when the cache has everything. A dump is of what is made now. */
static bool
look_up(build *b, const mc_nvrtc_identity *id)
{
    bool all = true;
    for (size_t i = 0; i < b->n; i++) {
        job *j = &b->jobs[i];
        j->key = key_of(j, id);
        j->cached = j->good = !b->t->dump_dir && take_from_cache(b->cache, j);
        all = all && j->cached;
    }
    return all;
}

static void
forget(build *b)
{
    for (size_t i = 0; i < b->n; i++) {
        job *j = &b->jobs[i];
        mc_buf_fini(&j->cubin);
        mc_buf_fini(&j->ptx);
        mc_buf_fini(&j->log);
        j->cached = j->good = false;
    }
}

/* ---- compiling ----------------------------------------------------------------------------------------------- */

/* Without the lines that differ from one time to the next. */
static void
keep_lines(mc_buf *log)
{
    mc_buf kept = {0};
    for (size_t at = 0; at < log->len;) {
        size_t n = strcspn(log->data + at, "\n");
        n += log->data[at + n] == '\n';
        mc_str line = {log->data + at, n};
        if (!mc_str_starts(line, "ptxas info    : Compile time")) mc_buf_str(&kept, line);
        at += n;
    }
    mc_buf_fini(log);
    *log = kept;
}

static void *
work(void *argument)
{
    build *b = argument;
    for (size_t i; (i = atomic_fetch_add(&b->next, 1)) < b->n;) {
        job *j = &b->jobs[i];
        if (j->cached) continue;
        j->good = mc_nvrtc_compile(b->nvrtc, &j->program, &j->cubin, &j->ptx, &j->log);
        keep_lines(&j->log);
        if (j->good && b->cache) put_into_cache(b->cache, j);
    }
    return NULL;
}

static size_t
count_threads(const build *b)
{
    size_t n = b->t->n_threads, n_missing = 0;
    cpu_set_t set;
    if (!n) n = sched_getaffinity(0, sizeof set, &set) == 0 ? (size_t)CPU_COUNT(&set) : 1;
    for (size_t i = 0; i < b->n; i++) n_missing += !b->jobs[i].cached;
    if (n > n_missing) n = n_missing;
    return n > MAX_THREADS ? MAX_THREADS : n;
}

static void
compile(build *b)
{
    pthread_t threads[MAX_THREADS];
    size_t n = count_threads(b), n_started = 0;
    while (n_started + 1 < n && pthread_create(&threads[n_started], NULL, work, b) == 0) n_started++;
    work(b);
    for (size_t i = 0; i < n_started; i++) pthread_join(threads[i], NULL);
}

/* ---- what is said -------------------------------------------------------------------------------------------- */

static bool
no_nvrtc(mc_diags *d, const char *why)
{
    mc_error(d, (mc_span){0}, MC_E0702, "NVRTC 12.0 or newer, which compiles GPU kernels, was not found");
    for (const char *line = why; *line;) {
        size_t n = strcspn(line, "\n");
        mc_note(d, (mc_span){0}, "tried %.*s", (int)n, line);
        line += n + (line[n] == '\n');
    }
    return mc_note(d, (mc_span){0},
                   "it comes with the CUDA toolkit, with `pip install nvidia-cuda-nvrtc`, or on Debian with "
                   "`apt install nvidia-cuda-toolkit`; MOEC_NVRTC=FILE names the file to use");
}

static bool
knows_archs(const build *b, mc_diags *d)
{
    for (size_t i = 0; i < b->n; i++)
        if (!mc_nvrtc_knows(b->nvrtc, b->sources[i].arch))
            return mc_error(d, (mc_span){0}, MC_E0704, "%s makes no code for %s: a newer NVRTC is needed (%s was used)",
                            mc_gpu_toolchain_name(), mc_gpu_arch_name(b->sources[i].arch), b->nvrtc->path);
    return true;
}

static void
remark_slow(const mc_gpu_source *source, mc_str log, mc_diags *d)
{
    mc_ptxas_report r = mc_ptxas_read(log);
    const char *arch = mc_gpu_arch_name(source->arch);
    if (r.serialised)
        mc_remark(d, (mc_span){0}, MC_R0701, "in %s for %s, matrix products wait for each other", source->name, arch);
    if (r.spill_stores + r.spill_loads && !source->spills_allowed)
        mc_remark(d, (mc_span){0}, MC_R0701, "%s for %s has more values than registers: %u bytes are spilled",
                  source->name, arch, r.spill_stores);
}

static bool
report(const build *b, mc_arena *arena, mc_diags *d, mc_gpu_built *out)
{
    bool all = true;
    for (size_t i = 0; i < b->n; i++) {
        const mc_gpu_source *source = &b->sources[i];
        const job *j = &b->jobs[i];
        out[i] = (mc_gpu_built){mc_str_dup(arena, mc_buf_view(&j->cubin)), mc_str_dup(arena, mc_buf_view(&j->log)),
                                j->cached};
        if (j->good)
            remark_slow(source, out[i].log, d);
        else
            mc_error(d, (mc_span){0}, MC_E0703, "%s refuses the kernel %s for %s:\n%.*s", mc_gpu_toolchain_name(),
                     source->name, mc_gpu_arch_name(source->arch), MC_FMT(mc_str_slice(out[i].log, 0, MAX_LOG_SHOWN)));
        all = all && j->good;
        if (b->t->dump_dir && !mc_gpu_dump(b->t->dump_dir, source, mc_buf_view(&j->ptx), &out[i], d)) return false;
    }
    return all;
}

/* ---- the whole ----------------------------------------------------------------------------------------------- */

/* Everything from the cache, or NVRTC for the rest. */
static bool
obtain(build *b, mc_arena *arena, mc_diags *d)
{
    const char *why;
    mc_nvrtc_identity last = {0}, now = {0};
    bool recalled = b->cache && mc_nvrtc_identity_recall(b->cache, arena, &last);
    if (b->n == 0) return true;
    if (recalled && look_up(b, &last)) {
        atomic_store(&version_used, last.major * 1000 + last.minor);
        return true;
    }
    b->nvrtc = mc_nvrtc_get(&why);
    if (!b->nvrtc) return no_nvrtc(d, why);
    atomic_store(&version_used, b->nvrtc->major * 1000 + b->nvrtc->minor);
    if (!knows_archs(b, d)) return false;
    if (!mc_nvrtc_identity_of(b->nvrtc, arena, &now)) b->cache = NULL;
    if (!recalled || !mc_nvrtc_identity_same(&last, &now)) {
        forget(b);
        if (b->cache) mc_nvrtc_identity_remember(b->cache, &now);
        if (b->cache) look_up(b, &now);
    }
    compile(b);
    return true;
}

bool
mc_gpu_toolchain_build(const mc_gpu_toolchain *t, const mc_gpu_source *sources, size_t n, mc_arena *arena, mc_diags *d,
                       mc_gpu_built *out)
{
    build b = {.t = t, .cache = t->cache, .sources = sources, .jobs = MC_NEW_N(arena, job, n + 1), .n = n};
    for (size_t i = 0; i < n; i++) prepare(t, &sources[i], arena, &b.jobs[i]);
    bool good = obtain(&b, arena, d) && report(&b, arena, d, out);
    forget(&b);
    return good;
}

bool
mc_gpu_toolchain_compile(const mc_gpu_toolchain *t, const mc_gpu_source *sources, size_t n, mc_arena *arena,
                         mc_diags *d, mc_str *out_cubins)
{
    mc_gpu_built *built = MC_NEW_N(arena, mc_gpu_built, n + 1);
    if (!mc_gpu_toolchain_build(t, sources, n, arena, d, built)) return false;
    for (size_t i = 0; i < n; i++) out_cubins[i] = built[i].cubin;
    return true;
}
