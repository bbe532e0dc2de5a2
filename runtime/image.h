/* image: a descriptor as bytes without pointers: what the GPU backend writes, the caches keep and artefacts embed.
 *
 *     header | tables, pointers written as offsets from the header | cubins, each at a multiple of 16
 *
 * Reading copies the tables and turns offsets into addresses; cubins stay where they are. Nothing in an image is
 * trusted: every offset is checked before it is followed. */
#ifndef MC_RUNTIME_IMAGE_H
#define MC_RUNTIME_IMAGE_H

#include "runtime/abi.h"
#include "runtime/base/file.h"

/* Appends the image of a descriptor. out->len must be a multiple of 16. */
void mc_image_write(const moec_abi_model *abi, mc_buf *out);

/* *out_abi lies in *out_memory, which the caller frees; the cubins lie in the image.
 * Errors: MISMATCH (another version), SYNTAX (no image, cut off, damaged), MEMORY. */
moec_status mc_image_open(const void *image, size_t n_bytes, const moec_abi_model **out_abi, void **out_memory,
                          mc_fault *error) MOEC_MUST_USE;

#endif
