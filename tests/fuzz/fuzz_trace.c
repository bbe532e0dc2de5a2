/* libFuzzer: any bytes as a trace of routers, or a placement of experts. The first byte chooses: the file as it is; a
 * trace without its end, which is put behind it with the right hash, so that what follows is reached; or a placement.
 * What is accepted holds what it promises, and is written and read again. Run: fuzz_trace NEW tests/fuzz/corpus/trace
 */
#include "runtime/base/hash.h"
#include "runtime/placement.h"
#include "runtime/trace_format.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Hashes head and records as the writer does; an end that is wrong only in what the head says is no end. */
static size_t
seal(unsigned char *p, size_t n)
{
    if (n < MC_TRACE_HEAD_BYTES) return n;
    uint64_t n_layers = mc_trace_u32(p + 24), records = 0;
    uint64_t at = MC_TRACE_HEAD_BYTES + MC_TRACE_LAYER_BYTES * n_layers + mc_trace_padded(mc_trace_u32(p + 28));
    if (at > n) return n;
    uint64_t hash = mc_hash64(p, at, 0);
    while (n - at >= MC_TRACE_RECORD_BYTES) {
        uint32_t layer = mc_trace_u32(p + at + 4);
        if (layer >= n_layers) break;
        uint64_t top_k = mc_trace_u32(p + MC_TRACE_HEAD_BYTES + (size_t)MC_TRACE_LAYER_BYTES * layer + 4), ids;
        if (__builtin_mul_overflow(top_k * mc_trace_u32(p + at + 20), (uint64_t)mc_trace_u32(p + 12), &ids) ||
            ids > n - at - MC_TRACE_RECORD_BYTES)
            break;
        uint64_t bytes = MC_TRACE_RECORD_BYTES + mc_trace_padded(ids);
        if (bytes > n - at) break;
        hash = mc_hash64(p + at, bytes, hash);
        at += bytes;
        records++;
    }
    mc_trace_put32(p + at, MC_TRACE_END);
    mc_trace_put32(p + at + 4, 0);
    mc_trace_put64(p + at + 8, records);
    mc_trace_put64(p + at + 16, hash);
    return at + MC_TRACE_END_BYTES;
}

static void
try_trace(mc_trace *t)
{
    const mc_trace_info *info = mc_trace_about(t);
    mc_fault fault;
    mc_trace_writer *w;
    mc_trace_record r;
    mc_trace *again;
    unsigned char *bytes;
    size_t n;
    uint64_t records = 0;
    if (mc_trace_check(t, info, &fault) != MOEC_OK) abort();
    if (mc_trace_create_memory(info, &w, &fault) != MOEC_OK) abort();
    for (; mc_trace_next(t, &r); records++)
        if (mc_trace_add(w, &r, &fault) != MOEC_OK) abort(); /* an id out of range */
    if (records != mc_trace_n_records(t)) abort();
    float *loads = calloc(info->layers[0].n_experts, sizeof *loads);
    if (loads) mc_trace_loads(t, 0, loads);
    free(loads);
    if (mc_trace_take(w, &bytes, &n, &fault) != MOEC_OK) abort();
    if (mc_trace_read(bytes, n, "again", &again, &fault) != MOEC_OK) abort();
    if (mc_trace_n_records(again) != records || mc_trace_check(again, info, &fault) != MOEC_OK) abort();
    mc_trace_close(again);
    free(bytes);
}

static void
try_placement(const uint8_t *data, size_t size)
{
    mc_placement *p;
    mc_fault fault = {0};
    if (mc_placement_read(data, size, "fuzz", &p, &fault) != MOEC_OK) {
        if (p || !fault.text[0]) abort();
        return;
    }
    for (uint32_t l = 0; l < p->n_layers; l++)
        for (uint32_t s = 0; s < p->layers[l].n_slots; s++)
            if (p->layers[l].slots[s] < -1 || p->layers[l].slots[s] >= (int64_t)p->layers[l].n_experts) abort();
    mc_placement_close(p);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mc_trace *t;
    mc_fault fault = {0};
    if (size < 1) return 0;
    if (data[0] % 3 == 2) {
        try_placement(data + 1, size - 1);
        return 0;
    }
    unsigned char *copy = malloc(size + MC_TRACE_END_BYTES);
    if (!copy) return 0;
    memcpy(copy, data + 1, size - 1);
    size_t n = data[0] % 3 == 1 ? seal(copy, size - 1) : size - 1;
    if (mc_trace_read(copy, n, "fuzz", &t, &fault) == MOEC_OK)
        try_trace(t);
    else if (t || !fault.text[0])
        abort();
    mc_trace_close(t);
    free(copy);
    return 0;
}
