/* A library is its file: path, size and time of change. Remembered as one entry of the cache for each setting of the
 * variables that decide which file is found. */
#define _POSIX_C_SOURCE 200809L
#include "codegen/gpu/nvrtc_identity.h"

#include "runtime/base/cache_entry.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct record { /* in the cache; the path follows */
    uint64_t major, minor, n_bytes, seconds, nanoseconds;
} record;

static bool
look_at_file(mc_nvrtc_identity *i)
{
    struct stat st;
    if (stat(i->path.data, &st) != 0) return false;
    i->n_bytes = (uint64_t)st.st_size;
    i->seconds = (uint64_t)st.st_mtim.tv_sec;
    i->nanoseconds = (uint64_t)st.st_mtim.tv_nsec;
    return true;
}

bool
mc_nvrtc_identity_of(const mc_nvrtc *nvrtc, mc_arena *arena, mc_nvrtc_identity *out)
{
    *out = (mc_nvrtc_identity){
        .major = nvrtc->major, .minor = nvrtc->minor, .path = mc_str_dup(arena, mc_str_of(nvrtc->path))};
    return look_at_file(out);
}

bool
mc_nvrtc_identity_same(const mc_nvrtc_identity *a, const mc_nvrtc_identity *b)
{
    return a->major == b->major && a->minor == b->minor && a->n_bytes == b->n_bytes && a->seconds == b->seconds &&
           a->nanoseconds == b->nanoseconds && mc_str_eq(a->path, b->path);
}

static mc_cache_key
place(void)
{
    static const char *const variables[] = {"MOEC_NVRTC", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH"};
    mc_cache_key key = {{0}};
    mc_cache_key_add(&key, "nvrtc", 5);
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        const char *value = getenv(variables[i]);
        mc_cache_key_add(&key, value ? value : "", value ? strlen(value) + 1 : 0);
    }
    return key;
}

bool
mc_nvrtc_identity_recall(const char *cache, mc_arena *arena, mc_nvrtc_identity *out)
{
    mc_buf bytes = {0};
    record r;
    bool found = mc_cache_get(cache, place(), &bytes) && bytes.len >= sizeof r;
    if (found) {
        memcpy(&r, bytes.data, sizeof r);
        mc_str path = mc_str_slice(mc_buf_view(&bytes), sizeof r, bytes.len);
        mc_nvrtc_identity was = {.major = (int)r.major,
                                 .minor = (int)r.minor,
                                 .n_bytes = r.n_bytes,
                                 .seconds = r.seconds,
                                 .nanoseconds = r.nanoseconds,
                                 .path = mc_str_dup(arena, path)};
        *out = was;
        found = look_at_file(out) && mc_nvrtc_identity_same(out, &was);
    }
    mc_buf_fini(&bytes);
    return found;
}

void
mc_nvrtc_identity_remember(const char *cache, const mc_nvrtc_identity *identity)
{
    mc_buf bytes = {0};
    record r = {(uint64_t)identity->major, (uint64_t)identity->minor, identity->n_bytes, identity->seconds,
                identity->nanoseconds};
    mc_buf_write(&bytes, &r, sizeof r);
    mc_buf_str(&bytes, identity->path);
    mc_cache_put(cache, place(), mc_buf_view(&bytes));
    mc_buf_fini(&bytes);
}
