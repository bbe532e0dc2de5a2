/* libFuzzer: any bytes as the image of a model for GPUs, with a header that is right about them, so that what follows
 * is reached. What is accepted is described, laid out at small sizes, and written again.
 * Run: fuzz_image NEW tests/fuzz/corpus/image */
#include "runtime/abi_model.h"
#include "runtime/base/hash.h"
#include "runtime/exec.h"
#include "runtime/image.h"
#include "runtime/image_layout.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
try_model(const moec_model *model)
{
    const moec_abi_model *abi = model->abi;
    moec_tensor_info info;
    mc_buf out = {0};
    mc_exec x;
    mc_fault fault;
    size_t n_bytes;
    for (size_t i = 0; i < moec_model_n_inputs(model); i++)
        if (moec_model_input(model, i, &info) != MOEC_OK) abort();
    for (size_t i = 0; i < moec_model_n_outputs(model); i++)
        if (moec_model_output(model, i, &info) != MOEC_OK) abort();
    if (mc_exec_init(&x, abi, NULL, false, &fault) == MOEC_OK) {
        for (uint32_t i = 0; i < abi->n_syms; i++) x.syms[i] = 3;
        if (mc_exec_prepare(&x, abi->entry, &n_bytes, &fault) != MOEC_OK && !fault.text[0]) abort();
        mc_exec_fini(&x);
    }
    mc_image_write(abi, &out);
    mc_buf_fini(&out);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    moec_model *model;
    moec_error error;
    unsigned char *image = aligned_alloc(MC_IMAGE_ALIGN, (size + MC_IMAGE_ALIGN) / MC_IMAGE_ALIGN * MC_IMAGE_ALIGN);
    if (!image) return 0;
    memcpy(image, data, size);
    if (size >= sizeof(mc_image_header)) {
        mc_image_header head;
        memcpy(&head, image, sizeof head);
        memcpy(head.magic, MC_IMAGE_MAGIC, sizeof head.magic);
        head.version = MOEC_ABI_VERSION;
        head.n_bytes = size;
        head.hash = mc_hash64(image + sizeof head, size - sizeof head, 0);
        memcpy(image, &head, sizeof head);
    }
    if (moec_model_from_image(image, size, &model, &error) == MOEC_OK)
        try_model(model);
    else if (model || !error.text[0])
        abort();
    moec_model_destroy(model);
    free(image);
    return 0;
}
