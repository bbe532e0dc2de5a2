/* What a config.json says of element types, as a precision block: torch_dtype (or dtype) is how the matrices are
 * stored, quantization_config of kind fp8 which of them are FP8 and in which blocks. A family file that has a precision
 * block of its own keeps it. */
#include "frontend/import.h"

#include <jansson.h>

static const char *
storage_name(const json_t *root)
{
    static const char *const names[][2] = {{"float32", "f32"}, {"bfloat16", "bf16"}, {"float16", "f16"}};
    const json_t *value = json_object_get(root, "torch_dtype");
    if (!value) value = json_object_get(root, "dtype");
    const char *text = json_string_value(value);
    for (size_t i = 0; text && i < sizeof names / sizeof names[0]; i++)
        if (mc_str_is(mc_str_of(text), names[i][0])) return names[i][1];
    return NULL;
}

/* Released FP8 checkpoints leave embedding, head, norms and router as they are (docs/LANGUAGE.md, FP8). */
static bool
print_fp8(const json_t *quantization, mc_buf *out, mc_diags *diags)
{
    const char *method = json_string_value(json_object_get(quantization, "quant_method"));
    if (!method) return true;
    if (!mc_str_is(mc_str_of(method), "fp8"))
        return mc_error(diags, (mc_span){0}, MC_E0331, "checkpoints quantised by '%s' cannot be read yet; fp8 can",
                        method);
    const json_t *block = json_object_get(quantization, "weight_block_size");
    json_int_t rows = json_integer_value(json_array_get(block, 0)),
               columns = json_integer_value(json_array_get(block, 1));
    if (rows != 128 || columns != 128)
        return mc_error(diags, (mc_span){0}, MC_E0331,
                        "FP8 weights in blocks of %lld x %lld cannot be read yet; 128 x 128 can", (long long)rows,
                        (long long)columns);
    mc_buf_puts(out, "  fp8     e4m3, block = [128, 128], on = [attention, dense, experts, shared], except = [embed, "
                     "head, router, norm]\n");
    return true;
}

bool
mc_import_precision(mc_str config, mc_buf *out, mc_diags *diags)
{
    json_t *root = json_loadb(config.data, config.len, 0, NULL);
    const char *storage = storage_name(root);
    const json_t *quantization = json_object_get(root, "quantization_config");
    bool good = true;
    if (storage || json_is_object(quantization)) {
        mc_buf_puts(out, "\nprecision {\n");
        if (storage) mc_buf_printf(out, "  storage %s\n", storage);
        if (json_is_object(quantization)) good = print_fp8(quantization, out, diags);
        mc_buf_puts(out, "}\n");
    }
    json_decref(root);
    return good;
}
