/* An NVRTC that makes code for the CPU: the kernel's text and its headers go to a folder, the C++ compiler makes a
 * shared library of them (with MC_HOST: kernels/host.cuh), and its bytes are the "cubin". Kernels that take tensor maps
 * use instructions that have no emulation: they are not compiled, and their code says so. */
#define _GNU_SOURCE
#include "codegen/gpu/nvrtc.h"
#include "tests/gpu/emulate.h"

#include <ctype.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

enum { MAX_PATH = 512, MAX_ARGUMENTS = 64, COMPILATION = 6, INVALID_PROGRAM = 4, OUT_OF_MEMORY = 1 };

extern char **environ;

struct mc_nvrtc_program_object {
    char *text, *name;
    int n_headers;
    char **headers, **include_names;
    emulate_image image;
    char *cubin, *log;
    size_t n_cubin;
};

/* What the entry points look like is said once: these must agree with it. */
#define API(name, result, parameters) PUBLIC result name parameters;
#include "codegen/gpu/nvrtc_api.def"
#undef API

const char *
nvrtcGetErrorString(mc_nvrtc_status status)
{
    return status == 0 ? "NVRTC_SUCCESS" : status == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR";
}

mc_nvrtc_status
nvrtcVersion(int *major, int *minor)
{
    *major = 12;
    *minor = 99;
    return 0;
}

static const int archs[] = {80, 89, 90, 100};

mc_nvrtc_status
nvrtcGetNumSupportedArchs(int *n)
{
    *n = sizeof archs / sizeof *archs;
    return 0;
}

mc_nvrtc_status
nvrtcGetSupportedArchs(int *out)
{
    memcpy(out, archs, sizeof archs);
    return 0;
}

/* ---- programs ---------------------------------------------------------------------------------------------------- */

mc_nvrtc_status
nvrtcCreateProgram(mc_nvrtc_program *out, const char *text, const char *name, int n_headers, const char *const *headers,
                   const char *const *include_names)
{
    mc_nvrtc_program p = calloc(1, sizeof *p);
    *out = p;
    if (!p) return OUT_OF_MEMORY;
    p->text = strdup(text);
    p->name = strdup(name ? name : "default_program");
    p->headers = calloc((size_t)n_headers + 1, sizeof *p->headers);
    p->include_names = calloc((size_t)n_headers + 1, sizeof *p->include_names);
    p->n_headers = n_headers;
    for (int i = 0; i < n_headers; i++) {
        p->headers[i] = strdup(headers[i]);
        p->include_names[i] = strdup(include_names[i]);
    }
    return 0;
}

mc_nvrtc_status
nvrtcDestroyProgram(mc_nvrtc_program *program)
{
    mc_nvrtc_program p = *program;
    if (!p) return INVALID_PROGRAM;
    for (int i = 0; i < p->n_headers; i++) {
        free(p->headers[i]);
        free(p->include_names[i]);
    }
    free(p->headers);
    free(p->include_names);
    free(p->text);
    free(p->name);
    free(p->cubin);
    free(p->log);
    free(p);
    *program = NULL;
    return 0;
}

/* ---- what the text says about its kernel --------------------------------------------------------------------------
 */

static const char *
skip_space(const char *at)
{
    while (isspace((unsigned char)*at)) at++;
    return at;
}

/* From an opening parenthesis to behind its closing one. */
static const char *
skip_parentheses(const char *at)
{
    int depth = 0;
    for (; *at; at++) {
        depth += (*at == '(') - (*at == ')');
        if (depth == 0) return at + 1;
    }
    return at;
}

/* `__global__ void __launch_bounds__(256) name(parameters)`. False when there is no such thing. */
static bool
read_kernel(const char *text, emulate_image *image, bool *takes_maps)
{
    const char *at = strstr(text, "__global__");
    image->n_threads = 1024;
    for (at = at ? at + strlen("__global__") : ""; *(at = skip_space(at));) {
        size_t n = strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
        const char *behind = skip_space(at + n);
        if (n == 0) return false;
        if (*behind != '(') {
            at = behind;
            continue;
        }
        const char *end = skip_parentheses(behind);
        if (n == strlen("__launch_bounds__") && strncmp(at, "__launch_bounds__", n) == 0) {
            image->n_threads = (uint32_t)strtoul(behind + 1, NULL, 10);
            at = end;
            continue;
        }
        snprintf(image->name, sizeof image->name, "%.*s", (int)n, at);
        const char *maps = strstr(behind, "mc_maps");
        *takes_maps = maps && maps < end;
        return true;
    }
    return false;
}

/* ---- the compiler --------------------------------------------------------------------------------------------------
 */

static bool
write_text(const char *folder, const char *name, const char *text)
{
    char path[MAX_PATH];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    bool good = f && fputs(text, f) >= 0;
    if (f && fclose(f) != 0) good = false;
    return good;
}

static char *
read_bytes(const char *folder, const char *name, size_t *out_n)
{
    char path[MAX_PATH];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    struct stat s;
    char *bytes = f && fstat(fileno(f), &s) == 0 ? malloc((size_t)s.st_size + 1) : NULL;
    size_t n = bytes ? fread(bytes, 1, (size_t)s.st_size, f) : 0;
    if (f) fclose(f);
    if (bytes) bytes[n] = 0;
    *out_n = n;
    return bytes;
}

/* Nothing is left to the machine's taste: products and sums are not joined, so a kernel gives the same bits everywhere.
 */
static int
arguments(char **out, char *arch, char *cpu)
{
    static char *const fixed[] = {"-std=c++17",
                                  "-O1",
                                  "-DMC_HOST",
                                  "-shared",
                                  "-fPIC",
                                  "-fvisibility=hidden",
                                  "-nostartfiles",
                                  "-ffp-contract=off",
                                  "-fno-math-errno",
                                  "-fno-strict-aliasing",
                                  "-Wall",
                                  "-Werror",
                                  "-Wno-unknown-pragmas",
                                  "-Wno-attributes",
                                  "-Wno-psabi",
                                  "-x",
                                  "c++",
                                  "kernel.cu",
                                  "-o",
                                  "kernel.so"};
    int n = 0;
    const char *compiler = getenv("MOEC_FAKE_CXX");
    out[n++] = compiler && *compiler ? (char *)(uintptr_t)compiler : "g++";
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) out[n++] = fixed[i];
    out[n++] = arch;
    out[n++] = cpu;
    if (!strstr(out[0], "clang")) out[n++] = "-fno-gnu-unique";
#ifdef __SANITIZE_ADDRESS__
    out[n++] = "-fsanitize=address"; /* with the checks of undefined behaviour it takes twice as long */
#endif
    out[n] = NULL;
    return n;
}

static bool
has_fma(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

static bool
run_compiler(const char *folder, uint32_t arch_number)
{
    char arch[32], *cpu = has_fma() ? "-mfma" : "-fPIC", *argv[MAX_ARGUMENTS];
    snprintf(arch, sizeof arch, "-DMC_ARCH=%u", arch_number);
    arguments(argv, arch, cpu);
    char log[MAX_PATH];
    snprintf(log, sizeof log, "%s/log", folder);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addchdir_np(&actions, folder);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    pid_t pid;
    int status = -1;
    bool started = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ) == 0;
    posix_spawn_file_actions_destroy(&actions);
    return started && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void
remove_folder(mc_nvrtc_program p, const char *folder)
{
    static const char *const names[] = {"kernel.cu", "kernel.so", "log"};
    char path[MAX_PATH];
    if (getenv("MOEC_FAKE_KEEP")) return;
    for (int i = 0; i < p->n_headers; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, p->include_names[i]);
        unlink(path);
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

static bool
compile_in(mc_nvrtc_program p, const char *folder)
{
    bool good = write_text(folder, "kernel.cu", p->text);
    for (int i = 0; i < p->n_headers; i++) good = good && write_text(folder, p->include_names[i], p->headers[i]);
    good = good && run_compiler(folder, p->image.arch);
    size_t n;
    p->log = read_bytes(folder, "log", &n);
    char *library = good ? read_bytes(folder, "kernel.so", &n) : NULL;
    p->cubin = library ? malloc(sizeof p->image + n) : NULL;
    if (p->cubin) {
        p->image.n_bytes = n;
        memcpy(p->cubin, &p->image, sizeof p->image);
        memcpy(p->cubin + sizeof p->image, library, n);
        p->n_cubin = sizeof p->image + n;
    }
    free(library);
    return p->cubin != NULL;
}

static mc_nvrtc_status
refuse(mc_nvrtc_program p, const char *why)
{
    p->log = strdup(why);
    return COMPILATION;
}

mc_nvrtc_status
nvrtcCompileProgram(mc_nvrtc_program p, int n_options, const char *const *options)
{
    bool takes_maps = false;
    memcpy(p->image.magic, EMULATE_MAGIC, sizeof p->image.magic);
    for (int i = 0; i < n_options; i++)
        if (strncmp(options[i], "--gpu-architecture=sm_", 22) == 0)
            p->image.arch = (uint32_t)strtoul(options[i] + 22, NULL, 10);
    if (p->image.arch == 0) return refuse(p, "no --gpu-architecture=sm_ among the options\n");
    if (!read_kernel(p->text, &p->image, &takes_maps)) return refuse(p, "there is no __global__ function\n");
    if (takes_maps) {
        p->n_cubin = sizeof p->image;
        p->cubin = malloc(p->n_cubin);
        if (p->cubin) memcpy(p->cubin, &p->image, p->n_cubin);
        return p->cubin ? 0 : OUT_OF_MEMORY;
    }
    const char *root = getenv("TMPDIR");
    char folder[MAX_PATH / 2];
    snprintf(folder, sizeof folder, "%s/moec-nvrtc-XXXXXX", root && *root ? root : "/tmp");
    if (!mkdtemp(folder)) return refuse(p, "no folder for temporary files\n");
    bool good = compile_in(p, folder);
    remove_folder(p, folder);
    return good ? 0 : COMPILATION;
}

/* ---- results -------------------------------------------------------------------------------------------------------
 */

mc_nvrtc_status
nvrtcGetProgramLogSize(mc_nvrtc_program p, size_t *n_bytes)
{
    *n_bytes = p->log ? strlen(p->log) + 1 : 1;
    return 0;
}

mc_nvrtc_status
nvrtcGetProgramLog(mc_nvrtc_program p, char *log)
{
    strcpy(log, p->log ? p->log : "");
    return 0;
}

mc_nvrtc_status
nvrtcGetCUBINSize(mc_nvrtc_program p, size_t *n_bytes)
{
    *n_bytes = p->n_cubin;
    return 0;
}

mc_nvrtc_status
nvrtcGetCUBIN(mc_nvrtc_program p, char *cubin)
{
    memcpy(cubin, p->cubin, p->n_cubin);
    return 0;
}

mc_nvrtc_status
nvrtcGetPTXSize(mc_nvrtc_program p, size_t *n_bytes)
{
    *n_bytes = strlen(p->text) + 1;
    return 0;
}

/* There is none; its text is the nearest thing. */
mc_nvrtc_status
nvrtcGetPTX(mc_nvrtc_program p, char *ptx)
{
    strcpy(ptx, p->text);
    return 0;
}
