/* moec/base.h: what every other public header needs: version, visibility, status codes, element types.
 *
 * Conventions of the whole API
 *   - C11, usable from C++. No function prints, exits or keeps global state.
 *   - Objects made by *_create / *_open belong to the caller, who ends them with *_destroy / *_close.
 *   - Functions that can fail return moec_status; outputs come last and are named out_*.
 *   - Sizes say their unit: n_bytes, n_tokens, n_threads.
 */
#ifndef MOEC_BASE_H
#define MOEC_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOEC_VERSION_MAJOR 0
#define MOEC_VERSION_MINOR 1
#define MOEC_VERSION_PATCH 0
#define MOEC_VERSION_STRING "0.1.0"

#if defined(__GNUC__)
#define MOEC_API __attribute__((visibility("default")))
#define MOEC_MUST_USE __attribute__((warn_unused_result))
#define MOEC_PRINTF(fmt_arg, first_arg) __attribute__((format(printf, fmt_arg, first_arg)))
#else
#define MOEC_API
#define MOEC_MUST_USE
#define MOEC_PRINTF(fmt_arg, first_arg)
#endif

/* What happened, and what the caller should do about it. Numbers are stable: never reused or renumbered. */
typedef enum moec_status {
    MOEC_OK = 0,
    MOEC_ERR_ARGUMENT = 1,    /* a call was wrong: mend the call */
    MOEC_ERR_SYNTAX = 2,      /* a text or file is malformed or means nothing: mend the text; diagnostics say where */
    MOEC_ERR_NOT_FOUND = 3,   /* a file, weight or name is missing: supply it */
    MOEC_ERR_MISMATCH = 4,    /* shapes, dtypes, hashes or versions do not fit together: use the matching pair */
    MOEC_ERR_UNSUPPORTED = 5, /* valid, but this build, backend or processor cannot do it: choose another */
    MOEC_ERR_IO = 6,          /* the operating system refused a read or write: the message says which */
    MOEC_ERR_MEMORY = 7,      /* memory of the host or the GPU ran out: ask for less (shorter or fewer sequences) */
    MOEC_ERR_RANGE = 8,       /* a run-time size or id is outside what the model declares */
    MOEC_ERR_INTERNAL = 9,    /* a fault of moec's own: please report it */
    MOEC_ERR_DEVICE = 10,     /* the GPU or its driver failed: the message says what */
    MOEC_ERR_COMM = 11        /* another rank failed, or did not answer in time: the message says which */
} moec_status;

/* "ok", "argument", ...: a static string, never NULL. */
MOEC_API const char *moec_status_name(moec_status status);

/* Element types of tensors. Numbers are stable. */
typedef enum moec_dtype {
    MOEC_DTYPE_NONE = 0,
    MOEC_F32 = 1,
    MOEC_BF16 = 2,
    MOEC_F16 = 3,
    MOEC_F8E4M3 = 4,
    MOEC_F8E5M2 = 5,
    MOEC_F64 = 6,
    MOEC_I32 = 7,
    MOEC_I64 = 8,
    MOEC_I8 = 9,
    MOEC_U8 = 10,
    MOEC_BOOL = 11
} moec_dtype;

/* "f32", "bf16", ...: a static string. */
MOEC_API const char *moec_dtype_name(moec_dtype dtype);
/* Bytes of one element; 0 for MOEC_DTYPE_NONE. */
MOEC_API size_t moec_dtype_bytes(moec_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif
