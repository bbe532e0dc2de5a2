/* pages: see pages.h. Anonymous private mappings without reservation: a session sizes its buffers for the longest
 * sequence it may serve, and pays for those it does serve. */
#define _GNU_SOURCE
#include "runtime/pages.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

moec_status
mc_pages_alloc(size_t n_bytes, const char *what, mc_pages *out, mc_fault *error)
{
    *out = (mc_pages){0};
    if (n_bytes == 0) n_bytes = 1; /* so that data is always an address */
    void *p = MAP_FAILED;
    if (n_bytes <= SIZE_MAX / 2)
        p = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return mc_fail(error, MOEC_ERR_MEMORY, "cannot reserve %zu MiB for %s: %s", n_bytes >> 20, what,
                       strerror(ENOMEM));
    *out = (mc_pages){p, n_bytes};
    return MOEC_OK;
}

void
mc_pages_free(mc_pages *pages)
{
    if (pages->data) munmap(pages->data, pages->n_bytes);
    *pages = (mc_pages){0};
}

void
mc_pages_zero(mc_pages *pages)
{
    if (pages->data && madvise(pages->data, pages->n_bytes, MADV_DONTNEED) != 0) memset(pages->data, 0, pages->n_bytes);
}

void
mc_pages_read_only(mc_pages *pages)
{
    if (pages->data) mprotect(pages->data, pages->n_bytes, PROT_READ);
}
