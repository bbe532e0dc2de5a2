/* Loading NVRTC and driving it. A file that cannot be used (another architecture, too old, entry points missing) is
 * passed over for the next one, and the reason is kept for the message; but what $MOEC_NVRTC names is used or nothing.
 * Libraries are never unloaded: NVRTC has threads and tables of its own. */
#define _GNU_SOURCE
#include "codegen/gpu/nvrtc.h"

#include "runtime/base/file.h"

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MIN_MAJOR = 12, MAX_ROOTS = 16, MAX_PATH = 1024, MAX_NAME = 64 };

/* What was found under one value of $MOEC_NVRTC. */
typedef struct found {
    struct found *next;
    char *asked; /* NULL: it was not set */
    mc_nvrtc *nvrtc;
    mc_buf why;
} found;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static found *all_found;

static const char *const file_names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
enum { N_FILE_NAMES = sizeof file_names / sizeof *file_names };

static bool
take_entry_points(void *library, mc_nvrtc *n, const char *name, mc_buf *why)
{
    void *address;
#define API(entry, result, parameters)                                                                                 \
    address = dlsym(library, #entry);                                                                                  \
    if (!address) {                                                                                                    \
        mc_buf_printf(why, "%s: has no %s\n", name, #entry);                                                           \
        return false;                                                                                                  \
    }                                                                                                                  \
    memcpy(&n->entry, &address, sizeof address);
#include "codegen/gpu/nvrtc_api.def"
#undef API
    return true;
}

static bool
take_version(mc_nvrtc *n, const char *name, mc_buf *why)
{
    if (n->nvrtcVersion(&n->major, &n->minor) != 0) {
        mc_buf_printf(why, "%s: does not tell its version\n", name);
        return false;
    }
    if (n->major >= MIN_MAJOR) return true;
    mc_buf_printf(why, "%s: is NVRTC %d.%d; %d.0 or newer is needed\n", name, n->major, n->minor, MIN_MAJOR);
    return false;
}

static bool
load(const char *name, found *f)
{
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *reason = dlerror();
        mc_buf_printf(&f->why, "%s%s%s\n", name, reason ? ": " : "", reason ? reason : "");
        return false;
    }
    mc_nvrtc *n = calloc(1, sizeof *n);
    if (!n || !take_entry_points(library, n, name, &f->why) || !take_version(n, name, &f->why)) {
        free(n);
        return false;
    }
    void *address;
    Dl_info info;
    memcpy(&address, &n->nvrtcVersion, sizeof address);
    bool known = dladdr(address, &info) && info.dli_fname;
    char *path = known ? realpath(info.dli_fname, NULL) : NULL;
    n->path = path ? path : strdup(name);
    f->nvrtc = n;
    return true;
}

static bool
load_from_root(const char *root, found *f)
{
    static const char *const folders[] = {"lib64", "lib", "lib/x86_64-linux-gnu"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        for (size_t j = 0; j < N_FILE_NAMES; j++) {
            char path[MAX_PATH];
            int n = snprintf(path, sizeof path, "%s/%s/%s", root, folders[i], file_names[j]);
            if (n < (int)sizeof path && mc_file_exists(path) && load(path, f)) return true;
        }
    return false;
}

/* ---- /usr/local/cuda, then /usr/local/cuda-*, the newest first -------------------------------------------------- */

static int
newest_first(const void *a, const void *b)
{
    return strverscmp(b, a);
}

static bool
load_from_local(found *f)
{
    static const char local[] = "/usr/local";
    if (load_from_root("/usr/local/cuda", f)) return true;
    char names[MAX_ROOTS][MAX_NAME];
    size_t n = 0;
    DIR *folder = opendir(local);
    for (struct dirent *e; folder && n < MAX_ROOTS && (e = readdir(folder));)
        if (strncmp(e->d_name, "cuda-", 5) == 0 && strlen(e->d_name) < sizeof names[0]) strcpy(names[n++], e->d_name);
    if (folder) closedir(folder);
    qsort(names, n, sizeof names[0], newest_first);
    for (size_t i = 0; i < n; i++) {
        mc_buf root = {0};
        mc_buf_printf(&root, "%s/%s", local, names[i]);
        bool good = load_from_root(root.data, f);
        mc_buf_fini(&root);
        if (good) return true;
    }
    mc_buf_printf(&f->why, "%s/cuda*\n", local);
    return false;
}

static void
search(found *f)
{
    if (f->asked) {
        load(f->asked, f);
        return;
    }
    for (size_t i = 0; i < N_FILE_NAMES; i++)
        if (load(file_names[i], f)) return;
    static const char *const variables[] = {"CUDA_HOME", "CUDA_PATH"};
    for (size_t i = 0; i < 2; i++) {
        const char *root = getenv(variables[i]);
        if (!root || !*root) continue;
        if (load_from_root(root, f)) return;
        mc_buf_printf(&f->why, "$%s: %s\n", variables[i], root);
    }
    load_from_local(f);
}

const mc_nvrtc *
mc_nvrtc_get(const char **out_why)
{
    const char *asked = getenv("MOEC_NVRTC");
    if (asked && !*asked) asked = NULL;
    pthread_mutex_lock(&lock);
    found *f = all_found;
    while (f && (asked ? !f->asked || strcmp(asked, f->asked) != 0 : f->asked != NULL)) f = f->next;
    if (!f && (f = calloc(1, sizeof *f))) {
        f->asked = asked ? strdup(asked) : NULL;
        search(f);
        f->next = all_found;
        all_found = f;
    }
    pthread_mutex_unlock(&lock);
    *out_why = f && f->why.data ? f->why.data : "";
    return f ? f->nvrtc : NULL;
}

bool
mc_nvrtc_knows(const mc_nvrtc *nvrtc, uint32_t arch)
{
    enum { MAX_ARCHS = 256 };
    int archs[MAX_ARCHS], n = 0;
    if (nvrtc->nvrtcGetNumSupportedArchs(&n) != 0 || n > MAX_ARCHS || nvrtc->nvrtcGetSupportedArchs(archs) != 0)
        return true; /* then it says so itself */
    for (int i = 0; i < n; i++)
        if ((uint32_t)archs[i] == arch) return true;
    return false;
}

/* ---- one program ------------------------------------------------------------------------------------------------- */

typedef mc_nvrtc_status size_fn(mc_nvrtc_program program, size_t *n_bytes);
typedef mc_nvrtc_status bytes_fn(mc_nvrtc_program program, char *bytes);

static bool
fetch(mc_nvrtc_program program, size_fn *get_size, bytes_fn *get_bytes, mc_buf *out)
{
    size_t n = 0;
    if (get_size(program, &n) != 0) return false;
    char *bytes = malloc(n ? n : 1);
    bool good = bytes && get_bytes(program, bytes) == 0;
    if (good) mc_buf_write(out, bytes, n);
    free(bytes);
    return good;
}

/* Texts end in a NUL, which is counted. */
static void
fetch_text(mc_nvrtc_program program, size_fn *get_size, bytes_fn *get_bytes, mc_buf *out)
{
    mc_buf text = {0};
    if (fetch(program, get_size, get_bytes, &text) && text.len)
        mc_buf_write(out, text.data, strnlen(text.data, text.len));
    mc_buf_fini(&text);
}

bool
mc_nvrtc_compile(const mc_nvrtc *nvrtc, const mc_nvrtc_job *job, mc_buf *cubin, mc_buf *ptx, mc_buf *log)
{
    mc_nvrtc_program program = NULL;
    mc_nvrtc_status status =
        nvrtc->nvrtcCreateProgram(&program, job->text, job->name, job->n_headers, job->headers, job->include_names);
    if (status == 0) {
        status = nvrtc->nvrtcCompileProgram(program, job->n_options, job->options);
        fetch_text(program, nvrtc->nvrtcGetProgramLogSize, nvrtc->nvrtcGetProgramLog, log);
        if (status == 0 && job->wants_ptx) fetch_text(program, nvrtc->nvrtcGetPTXSize, nvrtc->nvrtcGetPTX, ptx);
        if (status == 0 && (!fetch(program, nvrtc->nvrtcGetCUBINSize, nvrtc->nvrtcGetCUBIN, cubin) || !cubin->len)) {
            mc_buf_puts(log, "no cubin was made\n");
            nvrtc->nvrtcDestroyProgram(&program);
            return false;
        }
        nvrtc->nvrtcDestroyProgram(&program);
    }
    if (status != 0 && !log->len) mc_buf_printf(log, "%s\n", nvrtc->nvrtcGetErrorString(status));
    return status == 0;
}
