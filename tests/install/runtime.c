/* Links only libmoec_rt.a, as a program around an ahead-of-time object does. */
#include <moec/runtime.h>

#include <stdio.h>

int
main(void)
{
    moec_model *model;
    moec_error error;
    if (moec_model_from_abi(NULL, &model, &error) != MOEC_ERR_MISMATCH || !error.text[0]) return 1;
    printf("%s %zu\n", moec_dtype_name(MOEC_BF16), moec_dtype_bytes(MOEC_BF16));
    return 0;
}
