/* Memory of the fake device: every block is a malloc of its own, filled with NaN, so that overruns, reads of what
 * nobody wrote and leaks are found; and every address that the driver is given is looked up. */
#define _GNU_SOURCE
#include "tests/gpu/fake_cuda.h"

#include <stdlib.h>
#include <string.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define HIDE(address, n) __asan_poison_memory_region((address), (n))
#define SHOW(address, n) __asan_unpoison_memory_region((address), (n))
#else
#define HIDE(address, n) (void)0
#define SHOW(address, n) (void)0
#endif

enum { POISON = 0xFF, ALIGN = 256 };

typedef struct block {
    struct block *next;
    unsigned char *address;
    size_t n;
    unsigned kind; /* CU_MEMORYTYPE_* */
    int device;
} block;

static block *blocks;
static int open; /* how deep */

static block *
find(uint64_t address)
{
    for (block *b = blocks; b; b = b->next)
        if (address >= (uintptr_t)b->address && address <= (uintptr_t)b->address + b->n) return b;
    return NULL;
}

bool
fake_is_memory(uint64_t address, size_t n, unsigned kind)
{
    for (block *b = blocks; b; b = b->next) {
        uintptr_t begin = (uintptr_t)b->address;
        if (b->kind == kind && address >= begin && address <= begin + b->n && n <= begin + b->n - address) return true;
    }
    return false;
}

void
fake_open_memory(void)
{
    if (open++) return;
    for (block *b = blocks; b; b = b->next)
        if (b->kind == CU_MEMORYTYPE_DEVICE) SHOW(b->address, b->n);
}

void
fake_close_memory(void)
{
    if (--open) return;
    for (block *b = blocks; b; b = b->next)
        if (b->kind == CU_MEMORYTYPE_DEVICE) HIDE(b->address, b->n);
}

static CUresult
add(unsigned kind, size_t n, unsigned char **out)
{
    void *address = NULL;
    block *b = malloc(sizeof *b);
    if (!b || posix_memalign(&address, ALIGN, n) != 0) {
        free(b);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    memset(address, POISON, n);
    *b = (block){blocks, address, n, kind, fake_context()->device};
    blocks = b;
    *out = address;
    return CUDA_SUCCESS;
}

static void
drop(block **at)
{
    block *b = *at;
    *at = b->next;
    if (b->kind == CU_MEMORYTYPE_DEVICE) {
        SHOW(b->address, b->n);
        fake_now.device_blocks--;
        fake_now.device_bytes -= b->n;
    } else {
        fake_now.host_blocks--;
    }
    free(b->address);
    free(b);
}

void
fake_forget_memory(int device)
{
    for (block **at = &blocks; *at;) {
        if ((*at)->device == device)
            drop(at);
        else
            at = &(*at)->next;
    }
}

/* Of exactly this address. As the real driver does it waits for all that the device has to do. */
static CUresult
remove_block(uint64_t address, unsigned kind)
{
    fake_wait_for_device(fake_context());
    for (block **at = &blocks; *at; at = &(*at)->next) {
        if ((uintptr_t)(*at)->address != address || (*at)->kind != kind) continue;
        drop(at);
        return CUDA_SUCCESS;
    }
    return fake_refuse(FAKE_INVALID_VALUE, "0x%llx is freed, but was not allocated or is freed already",
                       (unsigned long long)address);
}

CUresult
cuMemGetInfo(size_t *out_free, size_t *out_total)
{
    ENTER(true);
    *out_total = fake_memory_limit();
    *out_free = *out_total > fake_now.device_bytes ? *out_total - fake_now.device_bytes : 0;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuMemAlloc(CUdeviceptr *out_address, size_t n_bytes)
{
    ENTER(true);
    unsigned char *address;
    if (fake_is_capturing()) LEAVE(fake_spoil_capture());
    if (n_bytes == 0) LEAVE(FAKE_INVALID_VALUE);
    size_t limit = fake_memory_limit();
    if (n_bytes > limit || fake_now.device_bytes > limit - n_bytes) LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
    CUresult r = add(CU_MEMORYTYPE_DEVICE, n_bytes, &address);
    if (r != CUDA_SUCCESS) LEAVE(r);
    HIDE(address, n_bytes);
    *out_address = (uintptr_t)address;
    fake_now.allocations++;
    fake_now.device_blocks++;
    fake_now.device_bytes += n_bytes;
    if (fake_now.device_bytes > fake_now.most_device_bytes) fake_now.most_device_bytes = fake_now.device_bytes;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuMemFree(CUdeviceptr address)
{
    ENTER(true);
    if (address == 0) LEAVE(CUDA_SUCCESS);
    if (fake_is_capturing()) LEAVE(fake_spoil_capture());
    LEAVE(remove_block(address, CU_MEMORYTYPE_DEVICE));
}

CUresult
cuMemAllocHost(void **out_address, size_t n_bytes)
{
    ENTER(true);
    unsigned char *address;
    if (fake_is_capturing()) LEAVE(fake_spoil_capture());
    if (n_bytes == 0) LEAVE(FAKE_INVALID_VALUE);
    CUresult r = add(CU_MEMORYTYPE_HOST, n_bytes, &address);
    if (r != CUDA_SUCCESS) LEAVE(r);
    *out_address = address;
    fake_now.host_blocks++;
    LEAVE(CUDA_SUCCESS);
}

CUresult
cuMemFreeHost(void *address)
{
    ENTER(true);
    if (fake_is_capturing()) LEAVE(fake_spoil_capture());
    LEAVE(remove_block((uintptr_t)address, CU_MEMORYTYPE_HOST));
}

/* ---- copies --------------------------------------------------------------------------------------------------------
 */

static bool
is_device(const char *what, CUdeviceptr address, size_t n)
{
    if (fake_is_memory(address, n, CU_MEMORYTYPE_DEVICE)) return true;
    fake_refuse(FAKE_INVALID_VALUE, "a copy %s %zu bytes at 0x%llx, which are not memory of the device", what, n,
                (unsigned long long)address);
    return false;
}

static bool
is_host(const void *address, size_t n)
{
    if (!fake_is_memory((uintptr_t)address, n, CU_MEMORYTYPE_DEVICE)) return true;
    fake_refuse(FAKE_INVALID_VALUE, "a copy takes memory of the device for the host's");
    return false;
}

/* What is in pageable memory is taken at once, as the real driver does; what is pinned when the copy's turn comes. */
CUresult
cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t n_bytes, CUstream stream)
{
    ENTER(true);
    if (n_bytes == 0) LEAVE(CUDA_SUCCESS);
    if (!is_device("writes", to, n_bytes) || !is_host(from, n_bytes)) LEAVE(FAKE_INVALID_VALUE);
    fake_work w = {.kind = FAKE_COPY, .to = to, .from = (uintptr_t)from, .n = n_bytes};
    if (!fake_is_capturing() && !fake_is_memory((uintptr_t)from, n_bytes, CU_MEMORYTYPE_HOST)) {
        w.kept = malloc(n_bytes);
        if (!w.kept) LEAVE(CUDA_ERROR_OUT_OF_MEMORY);
        memcpy(w.kept, from, n_bytes);
        w.from = (uintptr_t)w.kept;
    }
    fake_now.copies++;
    LEAVE(fake_append(stream, w));
}

CUresult
cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t n_bytes, CUstream stream)
{
    ENTER(true);
    if (n_bytes == 0) LEAVE(CUDA_SUCCESS);
    if (!is_device("reads", from, n_bytes) || !is_host(to, n_bytes)) LEAVE(FAKE_INVALID_VALUE);
    fake_now.copies++;
    CUresult r = fake_append(stream, (fake_work){.kind = FAKE_COPY, .to = (uintptr_t)to, .from = from, .n = n_bytes});
    bool pinned = fake_is_memory((uintptr_t)to, n_bytes, CU_MEMORYTYPE_HOST);
    if (!pinned && !fake_is_capturing()) fake_finish_all(fake_context());
    LEAVE(r);
}

CUresult
cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t n_bytes, CUstream stream)
{
    ENTER(true);
    if (n_bytes == 0) LEAVE(CUDA_SUCCESS);
    if (!is_device("reads", from, n_bytes) || !is_device("writes", to, n_bytes)) LEAVE(FAKE_INVALID_VALUE);
    fake_now.copies++;
    LEAVE(fake_append(stream, (fake_work){.kind = FAKE_COPY, .to = to, .from = from, .n = n_bytes}));
}

static CUresult
set_memory(CUdeviceptr at, unsigned value, unsigned element, size_t n, CUstream stream)
{
    if (n == 0) return CUDA_SUCCESS;
    if (at % element) return FAKE_INVALID_VALUE;
    if (!is_device("sets", at, n * element)) return FAKE_INVALID_VALUE;
    return fake_append(stream, (fake_work){.kind = FAKE_SET, .to = at, .n = n, .value = value, .element = element});
}

CUresult
cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t n, CUstream stream)
{
    ENTER(true);
    LEAVE(set_memory(at, value, 1, n, stream));
}

CUresult
cuMemsetD32Async(CUdeviceptr at, unsigned value, size_t n, CUstream stream)
{
    ENTER(true);
    LEAVE(set_memory(at, value, 4, n, stream));
}

/* Of memory that the driver does not know every attribute is zero (the device -2), and that is no error. */
CUresult
cuPointerGetAttributes(unsigned n, int *attributes, void **out_values, CUdeviceptr address)
{
    ENTER(false);
    const block *b = find(address);
    for (unsigned i = 0; i < n; i++) {
        switch (attributes[i]) {
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)out_values[i] = b ? b->kind : 0; break;
        case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(unsigned *)out_values[i] = 0; break;
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)out_values[i] = b ? b->device : -2; break;
        default: LEAVE(FAKE_INVALID_VALUE);
        }
    }
    LEAVE(CUDA_SUCCESS);
}
