/* trace_format: the parts of a trace as they lie in the file (trace.h), for its writer and its reader. */
#ifndef MC_RUNTIME_TRACE_FORMAT_H
#define MC_RUNTIME_TRACE_FORMAT_H

#include "runtime/trace.h"

#define MC_TRACE_MAGIC "MOECTRC" /* with its zero: 8 bytes */

enum {
    MC_TRACE_RECORD = 0x44434552, /* "RECD" */
    MC_TRACE_END = 0x454E4F44,    /* "DONE" */
    MC_TRACE_HEAD_BYTES = 32,
    MC_TRACE_LAYER_BYTES = 16,
    MC_TRACE_RECORD_BYTES = 24,
    MC_TRACE_END_BYTES = 24,
    MC_TRACE_MAX_TEXTS = 1 << 26
};

static inline uint64_t
mc_trace_padded(uint64_t n)
{
    return (n + 7) & ~UINT64_C(7);
}

static inline uint32_t
mc_trace_u32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t
mc_trace_u64(const unsigned char *p)
{
    return mc_trace_u32(p) | (uint64_t)mc_trace_u32(p + 4) << 32;
}

static inline void
mc_trace_put32(unsigned char *p, uint32_t v)
{
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> 8 * i);
}

static inline void
mc_trace_put64(unsigned char *p, uint64_t v)
{
    mc_trace_put32(p, (uint32_t)v);
    mc_trace_put32(p + 4, (uint32_t)(v >> 32));
}

/* A writer into memory. mc_trace_take ends it in every case; the caller frees *out_bytes. */
moec_status mc_trace_create_memory(const mc_trace_info *info, mc_trace_writer **out, mc_fault *error) MOEC_MUST_USE;
moec_status mc_trace_take(mc_trace_writer *w, unsigned char **out_bytes, size_t *out_n, mc_fault *error) MOEC_MUST_USE;

/* Lines of JSON as a trace in memory, which the caller frees. `name` begins messages. */
moec_status mc_trace_import(const unsigned char *bytes, size_t n_bytes, const char *name, unsigned char **out_bytes,
                            size_t *out_n, mc_fault *error) MOEC_MUST_USE;

#endif
