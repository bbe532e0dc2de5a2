/* image_layout: where the pointers of a descriptor are. The one description that writing and reading an image follow.
 */
#ifndef MC_RUNTIME_IMAGE_LAYOUT_H
#define MC_RUNTIME_IMAGE_LAYOUT_H

#include "runtime/abi.h"

#include <stddef.h>

typedef enum mc_image_kind {
    MC_IMAGE_TEXT,    /* const char *; may be null */
    MC_IMAGE_LIST,    /* count records */
    MC_IMAGE_ONE,     /* a record, or null */
    MC_IMAGE_TEXTS,   /* count texts */
    MC_IMAGE_LABELS,  /* the texts that launches name by offset; count is the number of launches */
    MC_IMAGE_CUBIN,   /* count (64 bits) bytes */
    MC_IMAGE_NOTHING, /* not kept: null */
} mc_image_kind;

typedef struct mc_image_record mc_image_record;

typedef struct mc_image_field {
    mc_image_kind kind;
    size_t at;                 /* of the pointer */
    size_t count;              /* of the 32-bit number of elements, in the same struct */
    const mc_image_record *of; /* LIST, ONE */
} mc_image_field;

struct mc_image_record {
    size_t n_bytes;
    const mc_image_field *fields;
    size_t n_fields;
};

extern const mc_image_record mc_image_model;

typedef struct mc_image_header {
    char magic[8];        /* MC_IMAGE_MAGIC */
    uint32_t version;     /* MOEC_ABI_VERSION */
    uint32_t label_bytes; /* of moec_abi_model.strings */
    uint64_t n_bytes, table_bytes;
    uint64_t hash; /* of everything after the header */
    uint64_t model;
    uint64_t reserved[2];
} mc_image_header;

#define MC_IMAGE_MAGIC "MOECIMG"

enum { MC_IMAGE_ALIGN = 16 };

#endif
