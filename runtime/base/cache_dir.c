#define _GNU_SOURCE
#include "runtime/base/cache_dir.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool
from_environment(const char *variable, const char *below, mc_buf *out)
{
    const char *value = getenv(variable);
    if (!value || value[0] != '/') return false;
    mc_buf_printf(out, "%s%s", value, below);
    return true;
}

moec_status
mc_cache_directory(const char *option, const char *part, mc_buf *out, mc_fault *fault)
{
    if (option && *option)
        mc_buf_puts(out, option);
    else if (!from_environment("MOEC_CACHE", "", out) && !from_environment("XDG_CACHE_HOME", "/moec", out) &&
             !from_environment("HOME", "/.cache/moec", out))
        return mc_fail(fault, MOEC_ERR_NOT_FOUND, "no cache directory: set MOEC_CACHE to an absolute path");
    mc_buf_printf(out, "/%s", part);
    moec_status status = mc_make_directories(out->data, fault);
    if (status != MOEC_OK) return status;
    struct stat st;
    if (stat(out->data, &st) < 0)
        return mc_fail(fault, MOEC_ERR_IO, "cannot look at the cache directory %s: %s", out->data, strerror(errno));
    if (st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)))
        return mc_fail(
            fault, MOEC_ERR_IO,
            "the cache directory %s belongs to somebody else or may be written by others: set MOEC_CACHE to a "
            "private one",
            out->data);
    if (access(out->data, W_OK) < 0)
        return mc_fail(fault, MOEC_ERR_IO, "the cache directory %s is not writable: %s", out->data, strerror(errno));
    return MOEC_OK;
}
