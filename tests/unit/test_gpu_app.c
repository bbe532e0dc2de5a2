/* The command line of executables with code for GPUs: which device runs, and what is said when none can. The code of
 * both kinds is fake_counter's, so both must say the same. */
#define _GNU_SOURCE
#include "runtime/app/app.h"
#include "tests/support/fake_model.h"
#include "tests/support/st_file.h"
#include "tests/unit/gpu_rig.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *dir;
static char out[16384], err[16384];

enum { CPU = 1, GPU = 2 }; /* which code the program has */

static void
slurp(const char *path, char *text, size_t n)
{
    FILE *f = fopen(path, "rb");
    size_t got = f ? fread(text, 1, n - 1, f) : 0;
    text[got] = 0;
    if (f) fclose(f);
}

static int
run(int parts, const char *const *arguments)
{
    char *argv[16] = {(char *)(uintptr_t) "./toy"};
    int argc = 1, status;
    const char *out_path = test_path(dir, "out"), *err_path = test_path(dir, "err");
    mc_app_code code = {.has_cpu = parts & CPU, .cpu = parts & CPU ? fake_counter() : NULL};
    if (parts & GPU) {
        code.image = counter_image.data;
        code.image_bytes = counter_image.len;
    }
    for (; arguments[argc - 1]; argc++) argv[argc] = (char *)(uintptr_t)arguments[argc - 1];
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(open(out_path, O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
        dup2(open(err_path, O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
        _exit(mc_app_main(&code, argc, argv));
    }
    waitpid(pid, &status, 0);
    slurp(out_path, out, sizeof out);
    slurp(err_path, err, sizeof err);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

#define RUN(parts, ...) run(parts, (const char *const[]){__VA_ARGS__, NULL})
#define CODE(expression, code) ck_assert_msg((expression) == (code), "%s%s", out, err)
#define SAYS(text, part) ck_assert_msg(strstr((text), (part)) != NULL, "\"%s\" does not say \"%s\"", (text), (part))

static void
set_up(void)
{
    static st_file f;
    float bias[256];
    int64_t dims[] = {256};
    dir = test_directory();
    fake_env("MOEC_CACHE", test_path(dir, "cache"));
    for (int i = 0; i < 256; i++) bias[i] = (float)(i % 3) / 8;
    st_begin(&f);
    st_add(&f, "model.bias", MOEC_F32, 1, dims, bias);
    st_write(&f, test_path(dir, "model.safetensors"));
}

static void
tear_down(void)
{
    test_directory_remove(dir);
}

#define LENGTHEN "--weights", dir, "--ids", "1,2,3;3,2,1", "--max-new", "8"

START_TEST(both_say_the_same)
{
    char want[sizeof out];
    CODE(RUN(CPU, LENGTHEN), 0);
    strcpy(want, out);
    ck_assert_uint_gt(strlen(want), 20);
    CODE(RUN(GPU, LENGTHEN), 0);
    ck_assert_str_eq(out, want);
    CODE(RUN(CPU | GPU, LENGTHEN, "--device", "cuda:0"), 0);
    ck_assert_str_eq(out, want);
    CODE(RUN(CPU | GPU, LENGTHEN, "--device", "cpu"), 0);
    ck_assert_str_eq(out, want);
}
END_TEST

START_TEST(what_is_chosen)
{
    CODE(RUN(CPU | GPU, "--info"), 0);
    SAYS(out, "device  cuda:0");
    SAYS(out, "compute capability 8.0");
    CODE(RUN(CPU | GPU, "--info", "--device", "cpu"), 0);
    SAYS(out, "device  cpu: this processor");
    CODE(RUN(CPU, "--info"), 0);
    SAYS(out, "device  cpu: this processor");
    fake_env("MOEC_FAKE_DEVICES", "3");
    CODE(RUN(GPU, "--info", "--device", "cuda:2"), 0);
    SAYS(out, "device  cuda:2");
    CODE(RUN(GPU, "--bench", "--max-new", "2"), 0);
    SAYS(out, "compute capability 8.0");
    SAYS(out, "where the time goes");
}
END_TEST

/* `auto` goes on with the processor and says why; what was asked for is refused. */
START_TEST(no_device)
{
    fake_env(_i ? "MOEC_FAKE_ARCH" : "MOEC_CUDA_DRIVER", _i ? "9.0" : "/nowhere/libcuda.so");
    const char *why = _i ? "--gpu sm_90a" : "no NVIDIA driver";
    CODE(RUN(CPU | GPU, LENGTHEN), 0);
    SAYS(err, "on the processor");
    SAYS(err, why);
    CODE(RUN(CPU | GPU, "--info"), 0);
    SAYS(out, "device  cpu");
    SAYS(out, why);
    CODE(RUN(CPU | GPU, LENGTHEN, "--device", "cuda"), 3);
    SAYS(err, why);
    CODE(RUN(GPU, LENGTHEN), 3);
    SAYS(err, why);
    CODE(RUN(GPU, "--info"), 0);
    SAYS(out, "device  none");
    CODE(RUN(GPU, "--help"), 0);
}
END_TEST

START_TEST(wrong_choices)
{
    CODE(RUN(CPU, "--info", "--device", "cuda"), 3);
    SAYS(err, "compile the model with --gpu");
    CODE(RUN(GPU, "--info", "--device", "cpu"), 3);
    SAYS(err, "no code for a CPU");
    CODE(RUN(GPU, LENGTHEN, "--device", "cuda:1"), 3);
    SAYS(err, "no GPU 1");
    CODE(RUN(CPU | GPU, "--info", "--device", "gpu"), 2);
    SAYS(err, "--device is auto, cpu, cuda or cuda:N");
    CODE(RUN(CPU | GPU, "--info", "--device", "cuda:"), 2);
    CODE(RUN(CPU | GPU, "--info", "--device", "cuda:1x"), 2);
    CODE(RUN(CPU | GPU, "--info", "--device", "cuda:99999999999"), 2);
}
END_TEST

static void
add(TCase *t)
{
    tcase_add_checked_fixture(t, set_up, tear_down);
    tcase_add_test(t, both_say_the_same);
    tcase_add_test(t, what_is_chosen);
    tcase_add_loop_test(t, no_device, 0, 2);
    tcase_add_test(t, wrong_choices);
}

int
main(void)
{
    return rig_main("gpu_app", add);
}
