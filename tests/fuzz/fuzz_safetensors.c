/* libFuzzer: any bytes as a checkpoint. The first byte chooses a small model; the rest is opened as a .safetensors
 * file, bound and packed in memory, so that headers, names, shapes, stages and conversions are all reached.
 * Links tests/support/fake_model.c and the runtime. Run: fuzz_safetensors -max_len=2048 NEW
 * tests/fuzz/corpus/safetensors */
#define _GNU_SOURCE
#include "moec/runtime.h"
#include "tests/support/fake_model.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BASE .role = "dense"
static const moec_abi_weight plain[] = {
    {.path = "a", BASE, .dtype = MOEC_F32, .layout = MOEC_ABI_PANELS, .nr = 4, .rank = 2, .dims = {3, 2}}};
static const moec_abi_weight fp8[] = {
    {.path = "a", BASE, .dtype = MOEC_F8E4M3, .layout = MOEC_ABI_PANELS, .nr = 4, .rank = 2, .dims = {3, 2}},
    {.path = "s", BASE, .dtype = MOEC_F32, .rank = 2, .dims = {1, 1}, .scale_of = "a", .block = {128, 128}}};
static const moec_abi_weight pair[] = {{.path = "g",
                                        .path2 = "u",
                                        BASE,
                                        .dtype = MOEC_BF16,
                                        .layout = MOEC_ABI_PAIR_PANELS,
                                        .nr = 4,
                                        .rank = 3,
                                        .dims = {2, 3, 2}}};
static const moec_abi_weight wide[] = {{.path = "a", BASE, .dtype = MOEC_F32, .rank = 2, .dims = {2, 32}}};
static const moec_abi_weight integers[] = {{.path = "a", BASE, .dtype = MOEC_I32, .rank = 1, .dims = {3}}};

#define N(array) (sizeof(array) / sizeof *(array))
static const struct {
    const moec_abi_weight *weights;
    size_t n;
    const char *rules;
} models[] = {
    {plain, N(plain), ""},
    {plain, N(plain), "\"a\" <- \"x.{e}\" | scale(2); ignore \"y.**\""},
    {plain, N(plain), "\"a\" <- \"x\" | transpose(0, 1) | reshape(3, 2)"},
    {plain, N(plain), "\"a\" <- \"x.{e}\" | concat(axis = 1); ignore \"**\""},
    {fp8, N(fp8), ""},
    {fp8, N(fp8), "\"a\" <- \"x.{e}\""},
    {pair, N(pair), "\"g\", \"u\" <- \"x\" | split(axis = 1)"},
    {pair, N(pair), "\"g\", \"u\" <- \"x.{e}\" | transpose(0, 1) | unzip"},
    {wide, N(wide), "\"a\" <- \"x\" | mxfp4"},
    {wide, N(wide), "\"a\" <- \"x\" | fp8(1, 8) | transpose(0, 1)"},
    {integers, N(integers), ""},
};

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    size_t which = data[0] % N(models);
    int fd = memfd_create("checkpoint", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data + 1, size - 1) != (ssize_t)(size - 1)) abort();
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    moec_model *model;
    moec_weights *weights;
    moec_error error;
    moec_weights_options options = {.in_memory = true, .n_threads = 1, .allow_narrowing = data[0] & 0x80};
    if (moec_model_from_abi(fake_weights(models[which].weights, models[which].n, models[which].rules), &model,
                            &error) != MOEC_OK)
        abort();
    if (moec_weights_open(model, path, &options, &weights, &error) == MOEC_OK)
        moec_weights_close(weights);
    else if (weights || !error.text[0])
        abort();
    moec_model_destroy(model);
    close(fd);
    return 0;
}
