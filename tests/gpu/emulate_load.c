/* Kernels as shared libraries: see emulate.h. $MOEC_FAKE_KEEP keeps the files, so that reports of sanitizers and
 * debuggers find names and lines. */
#define _GNU_SOURCE
#include "tests/gpu/emulate.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local char error[1024];

void
emulate_say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error, sizeof error, format, args);
    va_end(args);
}

const char *
emulate_error(void)
{
    return error;
}

/* The name must be new each time: the loader takes a file of the same name for the same library. */
static void *
load_bytes(const unsigned char *bytes, size_t n_bytes)
{
    const char *folder = getenv("TMPDIR");
    char path[512];
    snprintf(path, sizeof path, "%s/moec-fake-XXXXXX", folder && *folder ? folder : "/tmp");
    int fd = mkstemp(path);
    if (fd < 0) {
        emulate_say("%s cannot be made", path);
        return NULL;
    }
    size_t done = 0;
    for (ssize_t n = 1; done < n_bytes && n > 0; done += n > 0 ? (size_t)n : 0)
        n = write(fd, bytes + done, n_bytes - done);
    close(fd);
    void *library = done == n_bytes ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!library) {
        const char *why = done == n_bytes ? dlerror() : "it cannot be written";
        emulate_say("%s: %s", path, why ? why : "it cannot be loaded");
    }
    if (!getenv("MOEC_FAKE_KEEP")) unlink(path);
    return library;
}

emulate_kernel *
emulate_load(const void *code, const char *name)
{
    emulate_kernel *k = calloc(1, sizeof *k);
    if (!k) return NULL;
    memcpy(&k->image, code, sizeof k->image.magic);
    if (memcmp(k->image.magic, EMULATE_MAGIC, sizeof k->image.magic) != 0) {
        emulate_say("not the code of a kernel for the fake device");
        free(k);
        return NULL;
    }
    memcpy(&k->image, code, sizeof k->image);
    if (k->image.n_bytes == 0) {
        emulate_say("kernel %s uses the copy engine and does not run on the fake device", k->image.name);
        free(k);
        return NULL;
    }
    k->library = load_bytes((const unsigned char *)code + sizeof k->image, k->image.n_bytes);
    void *function = k->library ? dlsym(k->library, name) : NULL;
    void *get = k->library ? dlsym(k->library, "mc_host_get") : NULL;
    if (!function || !get) {
        if (k->library) emulate_say("there is no kernel %s in this code", name);
        emulate_unload(k);
        return NULL;
    }
    struct mc_host_state *(*host)(void);
    memcpy(&k->function, &function, sizeof function);
    memcpy(&host, &get, sizeof get);
    k->host = host();
    return k;
}

void
emulate_unload(emulate_kernel *kernel)
{
    if (!kernel) return;
    if (kernel->library) dlclose(kernel->library);
    free(kernel);
}
