/* nvrtc: the compiler library of CUDA, found when it is needed. $MOEC_NVRTC names one file; without it the places where
 * CUDA is usually installed are tried. */
#ifndef MC_CODEGEN_GPU_NVRTC_H
#define MC_CODEGEN_GPU_NVRTC_H

#include "runtime/base/str.h"

typedef int mc_nvrtc_status; /* 0: success */
typedef struct mc_nvrtc_program_object *mc_nvrtc_program;

typedef struct mc_nvrtc {
    const char *path; /* of the file that was loaded */
    int major, minor;
#define API(name, result, parameters) result(*name) parameters;
#include "codegen/gpu/nvrtc_api.def"
#undef API
} mc_nvrtc;

/* The library, loaded at the first call and kept for the life of the process. NULL when there is none: then *out_why
 * says where it was looked for, a line each. Any thread may call it. */
const mc_nvrtc *mc_nvrtc_get(const char **out_why);
/* Whether this library makes code for sm_<arch>. */
bool mc_nvrtc_knows(const mc_nvrtc *nvrtc, uint32_t arch);

typedef struct mc_nvrtc_job {
    const char *name, *text;
    const char *const *headers, *const *include_names;
    int n_headers;
    const char *const *options;
    int n_options;
    bool wants_ptx;
} mc_nvrtc_job;

/* Appends what the compiler says to log whether it succeeds or not; ptx stays empty unless wanted. */
bool mc_nvrtc_compile(const mc_nvrtc *nvrtc, const mc_nvrtc_job *job, mc_buf *cubin, mc_buf *ptx, mc_buf *log);

#endif
