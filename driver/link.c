/* The linker is the system's C compiler driver ($MOEC_CC, else cc, gcc, clang), because only it knows where the C
 * library lies. The runtime travels inside moec as two relocatable objects, so there is nothing to find at run time. */
#define _GNU_SOURCE
#include "driver/link.h"

#include "runtime/abi.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* driver/embed.S.in */
extern const unsigned char mc_embedded_rt_object[], mc_embedded_rt_object_end[];
extern const unsigned char mc_embedded_app_object[], mc_embedded_app_object_end[];
extern const char mc_embedded_base_h[], mc_embedded_base_h_end[];
extern const char mc_embedded_runtime_h[], mc_embedded_runtime_h_end[];
extern const char mc_embedded_train_h[], mc_embedded_train_h_end[];
extern const char mc_embedded_gpu_h[], mc_embedded_gpu_h_end[];
extern const char mc_embedded_comm_h[], mc_embedded_comm_h_end[];

/* The runtime that travels inside moec is for the machine moec itself was built for. */
unsigned
mc_link_machine(void)
{
    return ((const Elf64_Ehdr *)(const void *)mc_embedded_rt_object)->e_machine;
}

static moec_status
check_machine(mc_str object, mc_fault *fault)
{
    const Elf64_Ehdr *model = (const void *)object.data;
    if (!object.len || (object.len >= sizeof *model && model->e_machine == mc_link_machine())) return MOEC_OK;
    return mc_fail(
        fault, MOEC_ERR_UNSUPPORTED,
        "the code is for another kind of processor than this moec and the runtime in it: write it with --emit obj, "
        "and link it there with libmoec_rt.a");
}

static mc_str
embedded(const unsigned char *begin, const unsigned char *end)
{
    return (mc_str){(const char *)begin, (size_t)(end - begin)};
}

/* A directory for the linker's inputs, removed afterwards. */
typedef struct workplace {
    const char *name; /* of the artefact */
    bool cpu, gpu;    /* which code there is */
    char directory[PATH_MAX];
    char object[PATH_MAX + 32], image[PATH_MAX + 32], runtime[PATH_MAX + 32], exports[PATH_MAX + 32],
        log[PATH_MAX + 32];
} workplace;

static moec_status
workplace_open(workplace *w, mc_fault *fault)
{
    const char *parent = getenv("TMPDIR");
    if (!parent || !*parent) parent = "/tmp";
    int n = snprintf(w->directory, sizeof w->directory, "%s/moec-link-XXXXXX", parent);
    if (n < 0 || (size_t)n >= sizeof w->directory || !mkdtemp(w->directory)) {
        return mc_fail(fault, MOEC_ERR_IO,
                       "cannot make a temporary directory in %s: %s; set TMPDIR to a writable place", parent,
                       strerror(errno));
    }
    snprintf(w->object, sizeof w->object, "%s/model.o", w->directory);
    snprintf(w->image, sizeof w->image, "%s/image.o", w->directory);
    snprintf(w->runtime, sizeof w->runtime, "%s/runtime.o", w->directory);
    snprintf(w->exports, sizeof w->exports, "%s/exports", w->directory);
    snprintf(w->log, sizeof w->log, "%s/log", w->directory);
    return MOEC_OK;
}

static void
workplace_close(const workplace *w)
{
    unlink(w->object);
    unlink(w->image);
    unlink(w->runtime);
    unlink(w->exports);
    unlink(w->log);
    rmdir(w->directory);
}

static int
run_tool(char *const argv[], const char *log)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    pid_t pid;
    int failed = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed) return -failed;
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return -errno;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static moec_status
tool_failed(const char *tool, const char *log, mc_fault *fault)
{
    mc_buf text = {0};
    if (mc_file_read(log, 1 << 20, &text, NULL) != MOEC_OK) mc_buf_clear(&text);
    mc_fail(fault, MOEC_ERR_IO, "%s failed: %.*s", tool, text.len < 800 ? (int)text.len : 800,
            text.data ? text.data : "");
    mc_buf_fini(&text);
    return MOEC_ERR_IO;
}

/* What runtime/app/app_main.c runs: the names that it knows its model by. */
static int
name_model(const workplace *w, char (*names)[PATH_MAX + 96], const char **argv, int n)
{
    int used = 0;
    if (w->cpu) snprintf(names[used++], sizeof *names, "-Wl,--defsym=moec_app_query=moec_abi_query_%s", w->name);
    if (w->gpu) snprintf(names[used++], sizeof *names, "-Wl,--defsym=moec_app_gpu_image=moec_gpu_image_%s", w->name);
    for (int i = 0; i < used; i++) argv[n++] = names[i];
    return n;
}

static moec_status
link_with(const char *tool, const workplace *w, moec_artefact kind, const char *output, mc_fault *fault)
{
    char exports[PATH_MAX + 64], names[2][PATH_MAX + 96];
    snprintf(exports, sizeof exports, "-Wl,--version-script=%s", w->exports);
    const char *argv[32];
    int n = 0;
    argv[n++] = tool;
    if (kind == MOEC_SHARED_LIBRARY) {
        argv[n++] = "-shared";
        argv[n++] = "-Wl,-Bsymbolic"; /* two artefacts in one process each keep their own runtime */
        argv[n++] = exports;
    } else {
        n = name_model(w, names, argv, n);
    }
    argv[n++] = "-o";
    argv[n++] = output;
    if (w->cpu) argv[n++] = w->object;
    if (w->gpu) argv[n++] = w->image;
    argv[n++] = w->runtime;
    argv[n++] = "-Wl,--gc-sections";
    argv[n++] = "-Wl,--build-id=none"; /* the same input, the same bytes */
    argv[n++] = "-Wl,-z,noexecstack";
    argv[n++] = "-s";
    argv[n++] = "-lm";
    argv[n++] = "-lpthread";
    argv[n++] = "-ldl";
    argv[n] = NULL;
    int code = run_tool((char *const *)(uintptr_t)argv, w->log);
    if (code == -ENOENT) return MOEC_ERR_NOT_FOUND;
    if (code < 0) return mc_fail(fault, MOEC_ERR_IO, "cannot run %s: %s", tool, strerror(-code));
    return code ? tool_failed(tool, w->log, fault) : MOEC_OK;
}

static moec_status
link_with_any(const workplace *w, moec_artefact kind, const char *output, mc_fault *fault)
{
    const char *own = getenv("MOEC_CC");
    if (own && *own) {
        moec_status status = link_with(own, w, kind, output, fault);
        if (status != MOEC_ERR_NOT_FOUND) return status;
        return mc_fail(fault, MOEC_ERR_NOT_FOUND, "E0604: MOEC_CC names %s, which cannot be found", own);
    }
    static const char *const tools[] = {"cc", "gcc", "clang"};
    for (size_t i = 0; i < sizeof tools / sizeof *tools; i++) {
        moec_status status = link_with(tools[i], w, kind, output, fault);
        if (status != MOEC_ERR_NOT_FOUND) return status;
    }
    return mc_fail(fault, MOEC_ERR_NOT_FOUND,
                   "E0604: no linker: tried cc, gcc and clang; install one (Debian: apt install gcc), or set MOEC_CC, "
                   "or use --emit obj");
}

/* ---- the parts together ---- */

static moec_status
fill_workplace(const workplace *w, const mc_link_input *code, mc_str image, moec_artefact kind, mc_fault *fault)
{
    bool app = kind == MOEC_EXECUTABLE;
    mc_str runtime = app ? embedded(mc_embedded_app_object, mc_embedded_app_object_end)
                         : embedded(mc_embedded_rt_object, mc_embedded_rt_object_end);
    mc_buf exports = {0};
    mc_buf_puts(&exports, "{ global: moec_*; local: *; };\n");
    moec_status status = MOEC_OK;
    if (w->cpu) status = mc_file_write(w->object, code->object.data, code->object.len, 0600, fault);
    if (status == MOEC_OK && w->gpu) status = mc_file_write(w->image, image.data, image.len, 0600, fault);
    if (status == MOEC_OK) status = mc_file_write(w->runtime, runtime.data, runtime.len, 0600, fault);
    if (status == MOEC_OK) status = mc_file_write(w->exports, exports.data, exports.len, 0600, fault);
    mc_buf_fini(&exports);
    return status;
}

static moec_status
link_to(const mc_link_input *code, mc_str image, moec_artefact kind, const char *path, mc_fault *fault)
{
    workplace w = {.name = code->name, .cpu = code->object.len > 0, .gpu = image.len > 0};
    mc_writer *out;
    moec_status status = workplace_open(&w, fault);
    if (status != MOEC_OK) return status;
    status = fill_workplace(&w, code, image, kind, fault);
    if (status == MOEC_OK) status = mc_writer_open(path, &out, fault);
    if (status == MOEC_OK) {
        status = link_with_any(&w, kind, mc_writer_temporary(out), fault);
        if (status == MOEC_OK)
            status = mc_writer_commit(out, 0755, fault);
        else
            mc_writer_abandon(out);
    }
    workplace_close(&w);
    return status;
}

static moec_status
write_header(const mc_link_input *code, const char *path, mc_fault *fault)
{
    mc_buf header = {0};
    mc_write_header(code->name, code->object.len > 0, code->image.len > 0, &header);
    moec_status status = mc_file_write(path, header.data, header.len, 0644, fault);
    mc_buf_fini(&header);
    return status;
}

moec_status
mc_link(const mc_link_input *code, moec_artefact kind, const char *path, mc_fault *fault)
{
    mc_buf image = {0};
    if (kind == MOEC_HEADER) return write_header(code, path, fault);
    moec_status status = kind == MOEC_OBJECT ? MOEC_OK : check_machine(code->object, fault);
    if (status != MOEC_OK) return status;
    if (code->image.len) mc_link_image(code->image, code->name, &image);
    mc_str gpu = mc_buf_view(&image), only = code->object.len ? code->object : gpu;
    if (kind == MOEC_OBJECT)
        status = mc_file_write(path, only.data, only.len, 0644, fault);
    else if (kind == MOEC_ARCHIVE)
        status = mc_link_archive(code, gpu, embedded(mc_embedded_rt_object, mc_embedded_rt_object_end), path, fault);
    else
        status = link_to(code, gpu, kind, path, fault);
    mc_buf_fini(&image);
    return status;
}

/* A public header without its line `include`: what it names stands above already. */
static void
add_header(const char *begin, const char *end, const char *include, mc_buf *out)
{
    mc_str text = {begin, (size_t)(end - begin)};
    const char *at = strstr(text.data, include); /* a zero byte follows each embedded file */
    if (at) {
        mc_buf_write(out, text.data, (size_t)(at - text.data));
        text = mc_str_slice(text, (size_t)(at - text.data) + strlen(include), text.len);
    }
    mc_buf_str(out, text);
}

static void
write_opening(const char *name, bool gpu, mc_buf *out)
{
    if (gpu)
        mc_buf_printf(out,
                      "/* The compiled model as an image for GPUs. Constant. */\n"
                      "extern const moec_gpu_image moec_gpu_image_%s;\n\n"
                      "/* A handle for the model on GPUs (moec_session_options.gpu, moec_train_call.gpu); end it with\n"
                      " * moec_model_destroy. Errors: MISMATCH, MEMORY. */\n"
                      "static inline moec_status\n%s_open_gpu(moec_model **out_model, moec_error *error)\n{\n"
                      "    return moec_model_from_image(moec_gpu_image_%s.data, moec_gpu_image_%s.n_bytes, out_model, "
                      "error);\n}\n\n",
                      name, name, name, name);
    else
        mc_buf_printf(
            out,
            "/* The compiled model's description; NULL when `version` is not one it serves. Constant, never freed. */\n"
            "const struct moec_abi_model *moec_abi_query_%s(uint32_t version);\n\n"
            "/* A handle for the model; end it with moec_model_destroy. Errors: MISMATCH, MEMORY. */\n"
            "static inline moec_status\n%s_open(moec_model **out_model, moec_error *error)\n{\n"
            "    return moec_model_from_abi(moec_abi_query_%s(%u), out_model, error);\n}\n\n",
            name, name, name, MOEC_ABI_VERSION);
}

void
mc_write_header(const char *name, bool cpu, bool gpu, mc_buf *out)
{
    mc_buf_printf(
        out,
        "/* %s: a model compiled by moec " MOEC_VERSION_STRING ". This header is all that a program needs beside the\n"
        " * library itself. The model's own functions stand at the end; the rest is moec's runtime interface. */\n\n",
        name);
    mc_buf_write(out, mc_embedded_base_h, (size_t)(mc_embedded_base_h_end - mc_embedded_base_h));
    add_header(mc_embedded_runtime_h, mc_embedded_runtime_h_end, "#include \"moec/base.h\"\n", out);
    add_header(mc_embedded_train_h, mc_embedded_train_h_end, "#include \"moec/runtime.h\"\n", out);
    add_header(mc_embedded_comm_h, mc_embedded_comm_h_end, "#include \"moec/runtime.h\"\n", out);
    if (gpu) add_header(mc_embedded_gpu_h, mc_embedded_gpu_h_end, "#include \"moec/runtime.h\"\n", out);
    mc_buf_printf(out, "\n#ifndef MOEC_MODEL_%s\n#define MOEC_MODEL_%s\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n",
                  name, name);
    if (cpu) write_opening(name, false, out);
    if (gpu) write_opening(name, true, out);
    mc_buf_puts(out, "#ifdef __cplusplus\n}\n#endif\n#endif\n");
}
