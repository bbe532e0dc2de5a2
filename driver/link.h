/* link: code and the embedded runtime become an executable, a shared library or an archive. */
#ifndef MC_DRIVER_LINK_H
#define MC_DRIVER_LINK_H

#include "moec/compiler.h"
#include "runtime/base/file.h"

typedef struct mc_link_input {
    mc_str object; /* CPU code; may be empty */
    mc_str image;  /* GPU code; may be empty, but not both */
    const char *name;
} mc_link_input;

/* Writes any kind of artefact at `path`. The same code gives the same bytes. Everything else is written under temporary
 * names and removed. MOEC_OBJECT is the CPU's object, or the GPU's when there is no other.
 * Errors: NOT_FOUND (no linker), UNSUPPORTED (another kind of processor), IO (the linker failed, the disk is full,
 * ...). */
moec_status mc_link(const mc_link_input *code, moec_artefact kind, const char *path, mc_fault *fault) MOEC_MUST_USE;

/* The C header of an artefact with CPU code, GPU code or both: the runtime's interface and how to open the model. */
void mc_write_header(const char *name, bool cpu, bool gpu, mc_buf *out);

/* link_archive.c: image is the GPU's object file, or empty; runtime the runtime's. */
moec_status mc_link_archive(const mc_link_input *code, mc_str image, mc_str runtime, const char *path,
                            mc_fault *fault) MOEC_MUST_USE;
/* link_image.c: the image as an ELF object of this machine, as the moec_gpu_image moec_gpu_image_<name>. */
void mc_link_image(mc_str image, const char *name, mc_buf *out);
/* The ELF machine that the embedded runtime is for. */
unsigned mc_link_machine(void);

#endif
