/* What may go wrong on a GPU while all is well otherwise: memory runs out, a context is lost, any call of the driver
 * fails once; and images of models that are not what they should be. */
#define _GNU_SOURCE
#include "runtime/abi_model.h"
#include "tests/unit/gpu_rig.h"

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- failures of the device ---------------------------------------------------------------------------------------
 */

START_TEST(no_room)
{
    rig r;
    fake_env("MOEC_FAKE_MEMORY", "200000");
    rig_open(&r, &counter_image);
    moec_session_options options = {.gpu = r.gpu, .max_new = 64};
    OK(moec_session_create(r.model, r.weights, &options, &r.session, &error));
    moec_session_destroy(r.session);
    options.max_batch = 1000;
    REFUSED(moec_session_create(r.model, r.weights, &options, &r.session, &error), MOEC_ERR_MEMORY, "MB asked");
    ck_assert_ptr_null(r.session);
    options.max_batch = 1;
    OK(moec_session_create(r.model, r.weights, &options, &r.session, &error)); /* it can be asked for less */
    rig_close(&r);
    nothing_left();
}
END_TEST

START_TEST(a_lost_context)
{
    rig r;
    moec_gpu *again;
    fake_env("MOEC_FAKE_FAIL", "cuLaunchKernelEx:3:719");
    rig_open(&r, &counter_image);
    rig_session(&r, (moec_session_options){0});
    OK(moec_session_feed(r.session, &(int32_t){1}, 1, 1, NULL, &error));
    for (int i = 0; i < 3; i++)
        REFUSED(moec_session_feed(r.session, &(int32_t){1}, 1, 1, NULL, &error), MOEC_ERR_DEVICE,
                "restart the process");
    ck_assert_int_eq(moec_session_past(r.session), 1); /* nothing was appended */
    REFUSED(moec_gpu_open(0, &again, &error), MOEC_ERR_DEVICE, "restart the process");
    rig_close(&r);
}
END_TEST

/* Everything a program does once, with one call of the driver failing; true when it got through. */
static bool
whole_life(void)
{
    rig r = {0};
    moec_status s = moec_gpu_open(0, &r.gpu, &error);
    if (s == MOEC_OK) s = moec_model_from_image(counter_image.data, counter_image.len, &r.model, &error);
    if (s == MOEC_OK) s = moec_weights_synthetic(r.model, NULL, &r.weights, &error);
    moec_session_options options = {.gpu = r.gpu, .max_positions = 16};
    if (s == MOEC_OK) s = moec_session_create(r.model, r.weights, &options, &r.session, &error);
    for (int i = 0; s == MOEC_OK && i < 4; i++) s = moec_session_feed(r.session, &(int32_t){i}, 1, 1, NULL, &error);
    ck_assert_int_eq(s == MOEC_OK, error.text[0] == 0);
    rig_close(&r);
    return s == MOEC_OK;
}

static const char *const functions[] = {
#define MC_CUDA_FN(name, version, parameters) #name,
#include "runtime/gpu/cuda_api.def"
#undef MC_CUDA_FN
};
enum { N_FUNCTIONS = sizeof functions / sizeof *functions };

START_TEST(every_call_may_fail)
{
    char plan[128];
    const char *name = functions[_i];
    bool ends = strstr(name, "Free") || strstr(name, "Destroy") || strstr(name, "Unload") || strstr(name, "Release") ||
                strcmp(name, "cuCtxPopCurrent") == 0 || strcmp(name, "cuCtxPushCurrent") == 0;
    int call = 1, failed = 0;
    for (bool through = false; !through && call < 64; call++) { /* the fake driver counts on from life to life */
        snprintf(plan, sizeof plan, "%s:%d:999", name, call);
        pid_t child = fork();
        if (child == 0) {
            fake_env("MOEC_FAKE_FAIL", plan);
            bool good = whole_life();
            if (!ends) nothing_left();
            _exit(good ? 0 : 1);
        }
        int status = 0;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) <= 1, "%s ends the process", plan);
        through = WEXITSTATUS(status) == 0;
        failed += !through;
    }
    ck_assert_int_lt(call, 64);
    if (strstr(name, "Alloc") && !strstr(name, "Host")) ck_assert_int_ge(failed, 5);
}
END_TEST

/* ---- images -------------------------------------------------------------------------------------------------------
 */

START_TEST(images)
{
    moec_model *model;
    mc_buf again = {0};
    OK(moec_model_from_image(counter_image.data, counter_image.len, &model, &error));
    ck_assert_str_eq(moec_model_name(model), "counter");
    ck_assert_int_eq(moec_model_vocab(model), 256);
    mc_image_write(model->abi, &again); /* what was read writes the same bytes */
    ck_assert_uint_eq(again.len, counter_image.len);
    ck_assert_mem_eq(again.data, counter_image.data, again.len);
    moec_model_destroy(model);
    REFUSED(moec_model_from_image(NULL, 0, &model, &error), MOEC_ERR_SYNTAX, "no image");
    REFUSED(moec_model_from_image(again.data + 8, again.len - 8, &model, &error), MOEC_ERR_SYNTAX, "no image");
    for (size_t n = 0; n < again.len; n += 1 + n / 3)
        ck_assert_int_eq(moec_model_from_image(again.data, n, &model, &error), MOEC_ERR_SYNTAX);
    again.data[8] ^= 1;
    REFUSED(moec_model_from_image(again.data, again.len, &model, &error), MOEC_ERR_MISMATCH, "compile it again");
    again.data[8] ^= 1;
    for (size_t at = 64; at < again.len; at += 1 + at / 100) {
        again.data[at] ^= 0x40;
        REFUSED(moec_model_from_image(again.data, again.len, &model, &error), MOEC_ERR_SYNTAX, "damaged");
        again.data[at] ^= 0x40;
    }
    mc_buf odd = {0};
    mc_buf_putc(&odd, 0);
    mc_buf_write(&odd, again.data, again.len);
    REFUSED(moec_model_from_image(odd.data + 1, again.len, &model, &error), MOEC_ERR_ARGUMENT, "multiple of 16");
    mc_buf_fini(&odd);
    mc_buf_fini(&again);
}
END_TEST

static void
add(TCase *t)
{
    tcase_add_test(t, no_room);
    tcase_add_test(t, a_lost_context);
    tcase_add_loop_test(t, every_call_may_fail, 0, N_FUNCTIONS);
    tcase_add_test(t, images);
}

int
main(void)
{
    return rig_main("gpu_faults", add);
}
