/* Kernel texts to cubins: see toolchain.h. */
#include "codegen/gpu/toolchain.h"

#include "codegen/gpu/gpu.h"
#include "codegen/gpu/nvrtc.h"
#include "runtime/base/embedded.h"

#include <stdio.h>
#include <string.h>

extern const mc_embedded mc_gpu_texts[]; /* codegen/gpu/kernels, by file name without .cuh */

enum { MAX_LOG_SHOWN = 4000 };

static bool
no_nvrtc(mc_diags *d, const char *why)
{
    mc_error(d, (mc_span){0}, MC_E0702, "NVRTC 12.0 or newer, which compiles GPU kernels, was not found");
    for (const char *line = why; *line;) {
        size_t n = strcspn(line, "\n");
        mc_note(d, (mc_span){0}, "looked at %.*s", (int)n, line);
        line += n + (line[n] == '\n');
    }
    return mc_note(d, (mc_span){0},
                   "it comes with the CUDA toolkit, with `pip install nvidia-cuda-nvrtc`, or on Debian with "
                   "`apt install nvidia-cuda-toolkit`; MOEC_NVRTC=FILE says which file to use");
}

const char *
mc_gpu_toolchain_name(void)
{
    static char name[32];
    const char *why;
    const mc_nvrtc *n = mc_nvrtc_get(&why);
    if (n) snprintf(name, sizeof name, "NVRTC %d.%d", n->major, n->minor);
    return n ? name : "";
}

static void
headers(mc_arena *arena, mc_nvrtc_job *job)
{
    int n = 0;
    while (mc_gpu_texts[n].name) n++;
    const char **texts = MC_NEW_N(arena, const char *, n + 1), **names = MC_NEW_N(arena, const char *, n + 1);
    for (int i = 0; i < n; i++) {
        texts[i] = mc_str_dup(arena, (mc_str){(const char *)mc_gpu_texts[i].data, mc_gpu_texts[i].n}).data;
        names[i] = mc_strf(arena, "%s.cuh", mc_gpu_texts[i].name).data;
    }
    job->headers = texts;
    job->include_names = names;
    job->n_headers = n;
}

bool
mc_gpu_toolchain_compile(const mc_gpu_toolchain *t, const mc_gpu_source *sources, size_t n, mc_arena *arena,
                         mc_diags *d, mc_str *out_cubins)
{
    (void)t;
    const char *why;
    const mc_nvrtc *nvrtc = mc_nvrtc_get(&why);
    if (!nvrtc) return no_nvrtc(d, why);
    mc_nvrtc_job job = {0};
    headers(arena, &job);
    bool good = true;
    for (size_t i = 0; i < n; i++) {
        const char *options[] = {mc_strf(arena, "--gpu-architecture=%s", mc_gpu_arch_name(sources[i].arch)).data,
                                 "--std=c++17", "-default-device", "--ptxas-options=-v",
                                 "--ptxas-options=--warn-on-spills"};
        job.options = options;
        job.n_options = sizeof options / sizeof *options;
        job.name = mc_strf(arena, "%s.cu", sources[i].name).data;
        job.text = mc_str_dup(arena, sources[i].text).data;
        mc_buf cubin = {0}, ptx = {0}, log = {0};
        if (mc_nvrtc_compile(nvrtc, &job, &cubin, &ptx, &log)) {
            out_cubins[i] = mc_str_dup(arena, mc_buf_view(&cubin));
        } else {
            mc_error(d, (mc_span){0}, MC_E0703, "NVRTC %d.%d refused the kernel %s for %s:\n%.*s", nvrtc->major,
                     nvrtc->minor, sources[i].name, mc_gpu_arch_name(sources[i].arch),
                     log.len > MAX_LOG_SHOWN ? MAX_LOG_SHOWN : (int)log.len, log.data);
            good = false;
        }
        mc_buf_fini(&cubin);
        mc_buf_fini(&ptx);
        mc_buf_fini(&log);
    }
    return good;
}
