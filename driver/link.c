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

/* The runtime that travels inside moec is for the machine moec itself was built for. */
static moec_status
check_machine(const void *object, size_t n_bytes, mc_fault *fault)
{
    const Elf64_Ehdr *model = object, *runtime = (const Elf64_Ehdr *)(const void *)mc_embedded_rt_object;
    if (n_bytes >= sizeof *model && model->e_machine == runtime->e_machine) return MOEC_OK;
    return mc_fail(
        fault, MOEC_ERR_UNSUPPORTED,
        "the code is for another kind of processor than this moec and the runtime in it: write it with --emit obj, "
        "and link it there with libmoec_rt.a");
}

/* A directory for the linker's inputs, removed afterwards. */
typedef struct workplace {
    const char *name; /* of the artefact */
    char directory[PATH_MAX];
    char object[PATH_MAX + 32], runtime[PATH_MAX + 32], exports[PATH_MAX + 32], log[PATH_MAX + 32];
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
    snprintf(w->runtime, sizeof w->runtime, "%s/runtime.o", w->directory);
    snprintf(w->exports, sizeof w->exports, "%s/exports", w->directory);
    snprintf(w->log, sizeof w->log, "%s/log", w->directory);
    return MOEC_OK;
}

static void
workplace_close(const workplace *w)
{
    unlink(w->object);
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

static moec_status
link_with(const char *tool, const workplace *w, moec_artefact kind, const char *output, mc_fault *fault)
{
    char exports[PATH_MAX + 64], query[PATH_MAX + 64];
    snprintf(exports, sizeof exports, "-Wl,--version-script=%s", w->exports);
    snprintf(query, sizeof query, "-Wl,--defsym=moec_app_query=moec_abi_query_%s", w->name);
    const char *argv[24];
    int n = 0;
    argv[n++] = tool;
    if (kind == MOEC_SHARED_LIBRARY) {
        argv[n++] = "-shared";
        argv[n++] = "-Wl,-Bsymbolic"; /* two artefacts in one process each keep their own runtime */
        argv[n++] = exports;
    } else {
        argv[n++] = query; /* what runtime/app/app_main.c runs */
    }
    argv[n++] = "-o";
    argv[n++] = output;
    argv[n++] = w->object;
    argv[n++] = w->runtime;
    argv[n++] = "-Wl,--gc-sections";
    argv[n++] = "-Wl,--build-id=none"; /* the same input, the same bytes */
    argv[n++] = "-Wl,-z,noexecstack";
    argv[n++] = "-s";
    argv[n++] = "-lm";
    argv[n++] = "-lpthread";
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

/* ---- archives: the System V format, with no dates or owners, so that it is reproducible ---- */

static moec_status
archive_member(mc_writer *w, const char *name, const void *data, size_t n_bytes, mc_fault *fault)
{
    char header[61], field[17];
    snprintf(field, sizeof field, "%s/", name);
    snprintf(header, sizeof header, "%-16s%-12s%-6s%-6s%-8s%-10zu`\n", field, "0", "0", "0", "644", n_bytes);
    moec_status status = mc_writer_write(w, header, 60, fault);
    if (status == MOEC_OK) status = mc_writer_write(w, data, n_bytes, fault);
    if (status == MOEC_OK && n_bytes % 2) status = mc_writer_write(w, "\n", 1, fault);
    return status;
}

static void
put_be32(mc_buf *b, uint32_t x)
{
    for (int shift = 24; shift >= 0; shift -= 8) mc_buf_putc(b, (char)(x >> shift));
}

/* The symbol index that linkers want lists, for each global name, the member that defines it. Our two members need only
 * the names a caller can refer to: the query function (member 1) and the public interface (member 2). */
static void
archive_index(const char *name, size_t object_bytes, mc_buf *out)
{
    static const char *const api[] = {
#define MC_EXPORT(symbol) #symbol,
#include "driver/exports.def"
#undef MC_EXPORT
    };
    size_t n_api = sizeof api / sizeof *api;
    mc_buf names = {0};
    mc_buf_printf(&names, "moec_abi_query_%s", name);
    mc_buf_putc(&names, 0);
    for (size_t i = 0; i < n_api; i++) {
        mc_buf_puts(&names, api[i]);
        mc_buf_putc(&names, 0);
    }
    size_t index_bytes = 4 + 4 * (n_api + 1) + names.len;
    uint32_t first = (uint32_t)(8 + 60 + index_bytes + index_bytes % 2);
    uint32_t second = (uint32_t)(first + 60 + object_bytes + object_bytes % 2);
    put_be32(out, (uint32_t)n_api + 1);
    put_be32(out, first);
    for (size_t i = 0; i < n_api; i++) put_be32(out, second);
    mc_buf_write(out, names.data, names.len);
    mc_buf_fini(&names);
}

static moec_status
write_archive(const void *object, size_t n_bytes, const char *name, const char *path, mc_fault *fault)
{
    mc_writer *w;
    moec_status status = mc_writer_open(path, &w, fault);
    if (status != MOEC_OK) return status;
    mc_buf index = {0};
    archive_index(name, n_bytes, &index);
    size_t runtime_bytes = (size_t)(mc_embedded_rt_object_end - mc_embedded_rt_object);
    status = mc_writer_write(w, "!<arch>\n", 8, fault);
    if (status == MOEC_OK) status = archive_member(w, "", index.data, index.len, fault);
    if (status == MOEC_OK) status = archive_member(w, "model.o", object, n_bytes, fault);
    if (status == MOEC_OK) status = archive_member(w, "runtime.o", mc_embedded_rt_object, runtime_bytes, fault);
    mc_buf_fini(&index);
    if (status != MOEC_OK) {
        mc_writer_abandon(w);
        return status;
    }
    return mc_writer_commit(w, 0644, fault);
}

/* ---- the parts together ---- */

static moec_status
fill_workplace(const workplace *w, const void *object, size_t n_bytes, const char *name, moec_artefact kind,
               mc_fault *fault)
{
    bool app = kind == MOEC_EXECUTABLE;
    const unsigned char *runtime = app ? mc_embedded_app_object : mc_embedded_rt_object;
    const unsigned char *end = app ? mc_embedded_app_object_end : mc_embedded_rt_object_end;
    mc_buf exports = {0};
    mc_buf_printf(&exports, "{ global: moec_abi_query_%s; moec_*; local: *; };\n", name);
    moec_status status = mc_file_write(w->object, object, n_bytes, 0600, fault);
    if (status == MOEC_OK) status = mc_file_write(w->runtime, runtime, (size_t)(end - runtime), 0600, fault);
    if (status == MOEC_OK) status = mc_file_write(w->exports, exports.data, exports.len, 0600, fault);
    mc_buf_fini(&exports);
    return status;
}

moec_status
mc_link(const void *object, size_t n_bytes, const char *name, moec_artefact kind, const char *path, mc_fault *fault)
{
    workplace w = {.name = name};
    mc_writer *out;
    moec_status status = check_machine(object, n_bytes, fault);
    if (status != MOEC_OK) return status;
    if (kind == MOEC_ARCHIVE) return write_archive(object, n_bytes, name, path, fault);
    status = workplace_open(&w, fault);
    if (status != MOEC_OK) return status;
    status = fill_workplace(&w, object, n_bytes, name, kind, fault);
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

void
mc_write_header(const char *name, mc_buf *out)
{
    mc_buf_printf(
        out,
        "/* %s: a model compiled by moec " MOEC_VERSION_STRING ". This header is all that a program needs beside the\n"
        " * library itself. The model's own functions stand at the end; the rest is moec's runtime interface. */\n\n",
        name);
    mc_buf_write(out, mc_embedded_base_h, (size_t)(mc_embedded_base_h_end - mc_embedded_base_h));
    add_header(mc_embedded_runtime_h, mc_embedded_runtime_h_end, "#include \"moec/base.h\"\n", out);
    add_header(mc_embedded_train_h, mc_embedded_train_h_end, "#include \"moec/runtime.h\"\n", out);
    mc_buf_printf(
        out,
        "\n#ifndef MOEC_MODEL_%s\n#define MOEC_MODEL_%s\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n"
        "/* The compiled model's description; NULL when `version` is not one it serves. Constant, never freed. */\n"
        "const struct moec_abi_model *moec_abi_query_%s(uint32_t version);\n\n"
        "/* A handle for the model; end it with moec_model_destroy. Errors: MISMATCH, MEMORY. */\n"
        "static inline moec_status\n%s_open(moec_model **out_model, moec_error *error)\n{\n"
        "    return moec_model_from_abi(moec_abi_query_%s(%u), out_model, error);\n}\n\n"
        "#ifdef __cplusplus\n}\n#endif\n#endif\n",
        name, name, name, name, name, MOEC_ABI_VERSION);
}
