/* Two archives in one program, with their headers. Compiled as C11 -pedantic and as C++. */
#include "first.h"
#include "second.h"

#include "common.h"

static int
run(moec_status opened, moec_model *model, const moec_error *error)
{
    float out[N_ROWS * N_COLUMNS];
    if (opened != MOEC_OK) {
        fprintf(stderr, "%s\n", error->text);
        return 1;
    }
    int failed = run_once(model, 1, out);
    if (!failed) print_bits(moec_model_name(model), out);
    moec_model_destroy(model);
    return failed;
}

int
main(void)
{
    moec_model *model = NULL;
    moec_error error;
    moec_status status = first_open(&model, &error);
    int failed = run(status, model, &error);
    status = second_open(&model, &error);
    return run(status, model, &error) || failed;
}
