#define _GNU_SOURCE
#include "runtime/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

moec_status
mc_fail(mc_fault *error, moec_status status, const char *format, ...)
{
    if (error) {
        va_list args;
        va_start(args, format);
        vsnprintf(error->text, sizeof error->text, format, args);
        va_end(args);
    }
    return status;
}

static moec_status
fail_errno(mc_fault *error, const char *what, const char *path)
{
    moec_status status = errno == ENOENT ? MOEC_ERR_NOT_FOUND : MOEC_ERR_IO;
    return mc_fail(error, status, "cannot %s %s: %s", what, path, strerror(errno));
}

moec_status
mc_file_read(const char *path, size_t max_bytes, mc_buf *buf, mc_fault *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_errno(error, "open", path);
    struct stat st;
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        close(fd);
        return mc_fail(error, MOEC_ERR_IO, "cannot read %s: it is a directory", path);
    }
    char chunk[65536];
    size_t total = 0;
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            moec_status status = fail_errno(error, "read", path);
            close(fd);
            return status;
        }
        if (n == 0) break;
        total += (size_t)n;
        if (total > max_bytes) {
            close(fd);
            return mc_fail(error, MOEC_ERR_RANGE, "%s is larger than the %zu bytes allowed here", path, max_bytes);
        }
        mc_buf_write(buf, chunk, (size_t)n);
    }
    close(fd);
    return MOEC_OK;
}

moec_status
mc_file_map(const char *path, mc_mapping *out, mc_fault *error)
{
    *out = (mc_mapping){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_errno(error, "open", path);
    struct stat st;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return mc_fail(error, MOEC_ERR_IO, "cannot map %s: it is not a regular file", path);
    }
    if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            moec_status status = fail_errno(error, "map", path);
            close(fd);
            return status;
        }
        *out = (mc_mapping){p, (size_t)st.st_size};
    }
    close(fd);
    return MOEC_OK;
}

void
mc_file_unmap(mc_mapping *mapping)
{
    if (mapping->data) munmap((void *)(uintptr_t)mapping->data, mapping->n_bytes);
    *mapping = (mc_mapping){0};
}

bool
mc_file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

bool
mc_file_is_directory(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

moec_status
mc_make_directories(const char *path, mc_fault *error)
{
    char *copy = strdup(path);
    if (!copy) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    moec_status status = MOEC_OK;
    for (char *p = copy + 1;; p++) {
        char c = *p;
        if (c != '/' && c != 0) continue;
        *p = 0;
        if (mkdir(copy, 0755) < 0 && errno != EEXIST) {
            status = fail_errno(error, "create directory", copy);
            break;
        }
        *p = c;
        if (!c) break;
    }
    free(copy);
    return status;
}

struct mc_writer {
    char *path, *temporary;
    int fd;
    uint64_t offset;
};

static void
writer_free(mc_writer *w)
{
    free(w->path);
    free(w->temporary);
    free(w);
}

moec_status
mc_writer_open(const char *path, mc_writer **out, mc_fault *error)
{
    *out = NULL;
    mc_writer *w = calloc(1, sizeof *w);
    if (!w) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    w->path = strdup(path);
    if (!w->path || asprintf(&w->temporary, "%s.tmp-XXXXXX", path) < 0) {
        writer_free(w);
        return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    }
    w->fd = mkostemp(w->temporary, O_CLOEXEC);
    if (w->fd < 0) {
        moec_status status = fail_errno(error, "create a file beside", path);
        writer_free(w);
        return status;
    }
    *out = w;
    return MOEC_OK;
}

moec_status
mc_writer_write(mc_writer *w, const void *data, size_t n_bytes, mc_fault *error)
{
    const char *p = data;
    while (n_bytes) {
        ssize_t n = write(w->fd, p, n_bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(error, "write", w->path);
        p += n;
        n_bytes -= (size_t)n;
        w->offset += (uint64_t)n;
    }
    return MOEC_OK;
}

uint64_t
mc_writer_offset(const mc_writer *w)
{
    return w->offset;
}

const char *
mc_writer_temporary(const mc_writer *w)
{
    return w->temporary;
}

moec_status
mc_writer_commit(mc_writer *w, unsigned mode, mc_fault *error)
{
    moec_status status = MOEC_OK;
    mode_t mask = umask(0);
    umask(mask);
    /* The tool may have replaced the temporary file, so go by name. */
    if (fsync(w->fd) < 0 || chmod(w->temporary, mode & ~mask) < 0 || rename(w->temporary, w->path) < 0)
        status = fail_errno(error, "write", w->path);
    close(w->fd);
    if (status != MOEC_OK) unlink(w->temporary);
    writer_free(w);
    return status;
}

void
mc_writer_abandon(mc_writer *w)
{
    if (!w) return;
    close(w->fd);
    unlink(w->temporary);
    writer_free(w);
}

moec_status
mc_file_write(const char *path, const void *data, size_t n_bytes, unsigned mode, mc_fault *error)
{
    mc_writer *w;
    moec_status status = mc_writer_open(path, &w, error);
    if (status != MOEC_OK) return status;
    status = mc_writer_write(w, data, n_bytes, error);
    if (status != MOEC_OK) {
        mc_writer_abandon(w);
        return status;
    }
    return mc_writer_commit(w, mode, error);
}
