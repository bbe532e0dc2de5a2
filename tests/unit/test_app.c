/* The command line of executables, run in child processes on artefacts written by hand; and .npy files. */
#define _GNU_SOURCE
#include "runtime/app/app.h"
#include "runtime/npy.h"
#include "tests/support/fake_model.h"
#include "tests/support/st_file.h"

#include <check.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *dir;
static char out[65536], err[65536];
static float bias[256];

static void
slurp(const char *path, char *text, size_t n)
{
    FILE *f = fopen(path, "rb");
    size_t got = f ? fread(text, 1, n - 1, f) : 0;
    text[got] = 0;
    if (f) fclose(f);
}

/* Runs the program with arguments split at spaces ('~' stands for a space, '@' for the directory); the exit code. */
static int
run_to(const moec_abi_model *abi, const char *arguments, const char *stdout_path)
{
    char copy[2048], *argv[40] = {(char *)(uintptr_t) "./toy"}, err_path[512];
    int argc = 1;
    size_t n = 0;
    for (const char *p = arguments; *p && n + 64 < sizeof copy; p++) {
        if (*p == '@')
            n += (size_t)sprintf(copy + n, "%s", dir);
        else
            copy[n++] = *p;
    }
    copy[n] = 0;
    for (char *part = strtok(copy, " "); part; part = strtok(NULL, " ")) {
        for (char *c = part; *c; c++) *c = *c == '~' ? ' ' : *c;
        argv[argc++] = part;
    }
    snprintf(err_path, sizeof err_path, "%s/err", dir);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        int o = open(stdout_path, O_WRONLY | O_CREAT | O_TRUNC, 0600),
            e = open(err_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(o, 1);
        dup2(e, 2);
        _exit(mc_app_main(&(mc_app_code){.has_cpu = true, .cpu = abi}, argc, argv));
    }
    int status;
    waitpid(pid, &status, 0);
    slurp(stdout_path, out, sizeof out);
    slurp(err_path, err, sizeof err);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int
run(const moec_abi_model *abi, const char *arguments)
{
    return run_to(abi, arguments, test_path(dir, "out"));
}

static void
setup(void)
{
    static st_file f;
    int64_t dims[] = {256};
    dir = test_directory();
    setenv("MOEC_CACHE", test_path(dir, "cache"), 1);
    for (int i = 0; i < 256; i++) bias[i] = (float)(i % 3) / 8;
    st_begin(&f);
    st_add(&f, "model.bias", MOEC_F32, 1, dims, bias);
    st_write(&f, test_path(dir, "model.safetensors"));
}

static void
teardown(void)
{
    test_directory_remove(dir);
}

#define CODE(expression, code) ck_assert_msg((expression) == (code), "%s%s", out, err)
#define SAYS(text, part) ck_assert_msg(strstr((text), (part)) != NULL, "\"%s\" does not say \"%s\"", (text), (part))

/* ---- what needs no weights ------------------------------------------------------------------------------------- */

START_TEST(help_and_info)
{
    CODE(run(fake_counter(), "--help"), 0);
    SAYS(out, "toy --weights DIR --ids 1,2,3");
    SAYS(out, "--temperature");
    SAYS(out, "Exit codes");
    int lines = 0;
    for (char *p = out; *p; p++) lines += *p == '\n';
    ck_assert_int_le(lines, 40);
    CODE(run(fake_layers(), "-h"), 0);
    SAYS(out, "--input x=in.npy");
    CODE(run(fake_counter(), "--version"), 0);
    ck_assert_str_eq(out, "counter, compiled by by hand for any\n");
    CODE(run(fake_counter(), "--info"), 0);
    SAYS(out, "tokens: i32[B, S]  values 0..255");
    SAYS(out, "logits: f32[B, S, 256]");
    SAYS(out, "this processor can run it");
}
END_TEST

static const struct {
    const char *arguments, *says;
} usages[] = {
    {"", "what shall it continue?"},
    {"--promt x", "did you mean --prompt?"},
    {"--zzzzzz", "no option --zzzzzz"},
    {"prompt", "what is 'prompt'?"},
    {"--prompt", "--prompt needs TEXT"},
    {"--info=3", "takes no value"},
    {"--seed 1 --seed 2", "too often"},
    {"--weights @ --ids 1,x", "--ids is a list"},
    {"--weights @ --ids 1,,2", "--ids is a list"},
    {"--weights @ --ids 1,2;3", "equally long"},
    {"--weights @ --ids=", "--ids is empty"},
    {"--weights @ --ids 99999999999", "--ids is a list"},
    {"--weights @ --prompt a --ids 1", "not both"},
    {"--weights @ --prompt a --max-new -1", "--max-new is a number"},
    {"--weights @ --prompt a --max-new 1x", "--max-new is a number"},
    {"--weights @ --prompt a --temperature nan", "--temperature is a number"},
    {"--weights @ --prompt a --top-p 1.5", "--top-p is a number from 0 to 1"},
    {"--weights @ --prompt a --threads 0", "--threads is a number"},
    {"--weights @ --prompt a --size B", "--size is DIM=N"},
    {"--prompt a", "--weights PATH"},
};
enum { N_USAGES = sizeof usages / sizeof *usages };

START_TEST(wrong_command_lines)
{
    CODE(run(fake_counter(), usages[_i].arguments), 2);
    SAYS(err, usages[_i].says);
    ck_assert_str_eq(out, "");
}
END_TEST

START_TEST(exit_codes)
{
    moec_abi_model abi = *fake_counter();
    abi.features = "no-such-feature";
    CODE(run(&abi, "--weights @ --prompt a"), 3);
    SAYS(err, "compile it again");
    CODE(run(&abi, "--info"), 0);
    CODE(run(NULL, "--info"), 1);
    CODE(run(fake_counter(), "--weights @/nowhere --prompt a"), 1);
    SAYS(err, "there is no");
    CODE(run(fake_counter(), "--weights @ --ids 256"), 1);
    SAYS(err, "id 256 at position 0");
    CODE(run(fake_counter(), "--weights @ --ids 1 --max-new 65"), 1);
    SAYS(err, "at most 64");
    CODE(run_to(fake_counter(), "--info", "/dev/full"), 1);
    SAYS(err, "cannot write the output: No space left on device");
    CODE(run(fake_counter(), "--weights @ --ids 1,2 --logits /proc/nowhere/x.npy"), 1);
    abi = *fake_counter();
    moec_abi_tensor in = abi.inputs[0];
    moec_abi_tensor wide = abi.outputs[0];
    wide.dims[2].add = 300;
    abi.inputs = &in;
    abi.outputs = &wide;
    CODE(run(&abi, "--weights @ --prompt a"), 2);
    SAYS(err, "say --ids");
}
END_TEST

/* ---- several ranks --------------------------------------------------------------------------------------------- */

/* The model as one for ranks that share out sequences, or rows: it has no experts, but is run like those that have. */
static const moec_abi_model *
shared_out(const moec_abi_model *abi, uint32_t n_ranks, uint32_t n_replicas)
{
    static moec_abi_ep ep;
    static moec_abi_model model;
    memcpy(&model, abi, sizeof model);
    ep = (moec_abi_ep){.n_ranks = n_ranks, .n_replicas = n_replicas, .per_node = 1, .plan = "who holds what"};
    model.ep = &ep; /* symbol 0 is B of the one and T of the other model */
    return &model;
}

static void
same_as_on_one_rank(const char *arguments)
{
    static char one[65536];
    CODE(run(fake_counter(), arguments), 0);
    memcpy(one, out, sizeof one);
    char several[2048];
    snprintf(several, sizeof several, "%s --comm threads --threads 1", arguments);
    for (uint32_t n = 2; n < 5; n++) {
        CODE(run(shared_out(fake_counter(), n == 4 ? 2 : n, n == 4 ? 2 : 1), several), 0);
        ck_assert_str_eq(out, one);
        ck_assert_str_eq(err, "");
    }
}

START_TEST(ranks_say_what_one_says)
{
    same_as_on_one_rank("--weights @ --ids 1,2,3;4,5,6;7,8,9;10,11,12;9,8,9 --max-new 7");
    same_as_on_one_rank("--weights @ --ids 1,2;4,5;7,8;10,11 --max-new 9 --temperature 2 --seed 5 --eos 12,11,200");
    same_as_on_one_rank("--weights @ --ids 5;5;5;5;5;5;5;5;5 --max-new 20 --temperature 9 --top-p 0.9");
}
END_TEST

START_TEST(ranks_write_what_one_writes)
{
    mc_fault e;
    mc_npy one, many;
    int64_t dims[] = {7, 4};
    float x[28];
    CODE(run(fake_counter(), "--weights @ --ids 1,2,3;4,5,6;7,8,9;9,9,9;3,2,1 --logits @/one.npy"), 0);
    CODE(run(shared_out(fake_counter(), 3, 1),
             "--weights @ --ids 1,2,3;4,5,6;7,8,9;9,9,9;3,2,1 --logits @/many.npy --comm threads"),
         0);
    ck_assert(mc_npy_read(test_path(dir, "one.npy"), &one, &e) == MOEC_OK);
    ck_assert(mc_npy_read(test_path(dir, "many.npy"), &many, &e) == MOEC_OK);
    ck_assert_uint_eq(one.data.n_bytes, many.data.n_bytes);
    ck_assert_mem_eq(one.data.data, many.data.data, 5 * 3 * 256 * sizeof(float));
    mc_npy_fini(&one);
    mc_npy_fini(&many);
    for (int i = 0; i < 28; i++) x[i] = (float)(i * 5 % 13) - 6;
    ck_assert(mc_npy_write(test_path(dir, "x.npy"), MOEC_F32, 2, dims, x, &e) == MOEC_OK);
    CODE(run(fake_layers(), "--bench --size T=7"), 0);
    CODE(run(shared_out(fake_layers(), 2, 2), "--bench --size T=7 --comm threads"), 0);
    SAYS(out, "ranks 4, weights");
    SAYS(out, "T = 7, ");
    SAYS(out, " on each of 4 ranks");
}
END_TEST

START_TEST(ranks_fail_together)
{
    CODE(run(shared_out(fake_counter(), 2, 1), "--weights @ --ids 1,2;3,4"), 1);
    SAYS(err, "toy: counter is planned for 2 ranks (ep = 2, dp = 1): start it with mpirun -np 2, or compile it with");
    CODE(run(shared_out(fake_counter(), 2, 1), "--weights @ --ids 1,2;256,4 --comm threads"), 75);
    SAYS(err, "toy: rank 1: id 256 at position 0");
    SAYS(err, "toy: rank 0: rank 1 gave up: ");
    ck_assert_str_eq(out, "");
    CODE(run(shared_out(fake_counter(), 2, 1), "--weights @/nowhere --ids 1,2;3,4 --comm threads"), 75);
    CODE(run(shared_out(fake_counter(), 2, 1), "--weights @ --ids 1,2;3,4 --comm threads --max-new 100"), 75);
    SAYS(err, "at most 64");
    CODE(run(shared_out(fake_counter(), 2, 1), "--weights @ --comm threads"), 2);
    CODE(run(shared_out(fake_counter(), 2, 1), "--weights @ --ids 1 --comm threads --deadline 0"), 2);
    SAYS(err, "--deadline is a number from 0.01 to 1e+06, not '0'");
    CODE(run_to(shared_out(fake_counter(), 2, 1), "--weights @ --ids 1,2;3,4 --comm threads", "/dev/full"), 1);
    SAYS(err, "cannot write the output");
    CODE(run(fake_counter(), "--weights @ --ids 1 --comm smoke"), 75);
    SAYS(err, "smoke");
    CODE(run(fake_counter(), "--weights @ --ids 1 --comm local --max-new 1"), 0);
}
END_TEST

START_TEST(info_shows_the_plan)
{
    CODE(run(shared_out(fake_counter(), 4, 2), "--info"), 0);
    SAYS(out, "ranks   8 (ep = 4, dp = 2), 1 on a node, experts in runs\nwho holds what\n");
}
END_TEST

/* ---- generation ------------------------------------------------------------------------------------------------ */

/* The likeliest next id by the formula of the model. */
static int
expected_next(const int *ids, int n)
{
    int best = 0;
    float best_logit = -1;
    for (int v = 0; v < 256; v++) {
        float sum = bias[v] + (v == (ids[n - 1] + 1) % 256 ? 0.5f : 0);
        for (int i = 0; i < n; i++) sum += ids[i] == v ? 2.0f : 0;
        if (sum > best_logit) {
            best_logit = sum;
            best = v;
        }
    }
    return best;
}

START_TEST(greedy_ids)
{
    int ids[20] = {7, 9, 7, 30};
    char want[200] = "";
    for (int n = 4; n < 14; n++) {
        ids[n] = expected_next(ids, n);
        sprintf(want + strlen(want), n > 4 ? ",%d" : "%d", ids[n]);
    }
    strcat(want, "\n");
    CODE(run(fake_counter(), "--weights @ --ids 7,9,7,30 --max-new 10"), 0);
    ck_assert_str_eq(out, want);
    CODE(run(fake_counter(), "--ids=7,9,7,30 --max-new=10 --weights=@ --threads=2"), 0);
    ck_assert_str_eq(out, want);
    char twice[400];
    snprintf(twice, sizeof twice, "%s%s", want, want);
    CODE(run(fake_counter(), "--weights @ --ids 7,9,7,30;7,9,7,30 --max-new 10"), 0);
    ck_assert_str_eq(out, twice);
}
END_TEST

START_TEST(text_and_seeds)
{
    static char first[65536];
    CODE(run(fake_counter(), "--weights @ --prompt a~b --max-new 4"), 0);
    ck_assert_str_eq(out, "    \n"); /* each occurs once; bias[32] is the greatest of the three */
    CODE(run(fake_counter(), "--weights @ --prompt a~b --max-new 12 --temperature 2 --top-p 0.6 --seed 5"), 0);
    strcpy(first, out);
    CODE(run(fake_counter(), "--weights @ --prompt a~b --max-new 12 --temperature 2 --top-p 0.6 --seed 5 --threads 2"),
         0);
    ck_assert_str_eq(out, first);
    CODE(run(fake_counter(), "--weights @ --prompt a~b --max-new 12 --temperature 2 --top-p 0.6 --seed 6"), 0);
    ck_assert_str_ne(out, first);
}
END_TEST

static void
write_text(const char *name, const char *text)
{
    ck_assert_int_eq(mc_file_write(test_path(dir, name), text, strlen(text), 0644, NULL), MOEC_OK);
}

START_TEST(end_of_sequence)
{
    write_text("config.json", "{\"eos_token_id\": 98}");
    CODE(run(fake_counter(), "--weights @ --ids 97,98 --max-new 4"), 0);
    ck_assert_str_eq(out, "\n");
    CODE(run(fake_counter(), "--weights @ --ids 97,98 --max-new 4 --eos="), 0);
    ck_assert_str_eq(out, "98,98,98,98\n");
    write_text("generation_config.json", "{\"eos_token_id\": [1, 2]}"); /* this one counts */
    CODE(run(fake_counter(), "--weights @ --ids 97,98 --max-new 2"), 0);
    ck_assert_str_eq(out, "98,98\n");
    write_text("generation_config.json", "{\"eos_token_id\": [[[[ not json");
    CODE(run(fake_counter(), "--weights @ --ids 97,98 --max-new 2"), 0);
    ck_assert_str_eq(out, "\n");
    CODE(run(fake_counter(), "--weights @ --ids 97,98 --max-new 2 --eos 3,4"), 0);
    ck_assert_str_eq(out, "98,98\n");
}
END_TEST

START_TEST(logits_file)
{
    mc_npy npy;
    mc_fault fault;
    int32_t ids[] = {1, 2, 3, 4, 5, 6};
    ck_assert_int_eq(mc_npy_write(test_path(dir, "ids.npy"), MOEC_I32, 2, (int64_t[]){2, 3}, ids, &fault), MOEC_OK);
    CODE(run(fake_counter(), "--weights @ --ids @/ids.npy --logits @/l.npy"), 0);
    ck_assert_str_eq(out, "");
    ck_assert_msg(mc_npy_read(test_path(dir, "l.npy"), &npy, &fault) == MOEC_OK, "%s", fault.text);
    ck_assert_int_eq(npy.dtype, MOEC_F32);
    ck_assert_int_eq(npy.rank, 3);
    ck_assert_int_eq(npy.dims[0], 2);
    ck_assert_int_eq(npy.dims[1], 3);
    ck_assert_int_eq(npy.dims[2], 256);
    const float *logits = (const float *)(const void *)npy.data.data;
    ck_assert(logits[(3 + 1) * 256 + 5] == bias[5] + 2); /* sequence 1, after 4 5 */
    ck_assert(logits[(3 + 1) * 256 + 6] == bias[6] + 0.5f);
    mc_npy_fini(&npy);
}
END_TEST

/* One token of the model seen from the other side: bits per byte by the plain formula. */
START_TEST(score_of_a_file)
{
    char text[40];
    double bits = 0;
    for (int i = 0; i < 39; i++) text[i] = (char)('a' + i * i % 7);
    text[39] = 0;
    write_text("text", text);
    for (int w = 0; w < 2; w++) /* windows of 16; the rest of 7 bytes is left out */
        for (int i = 1; i < 16; i++) {
            double sum = 0, at = 0;
            for (int v = 0; v < 256; v++) {
                float logit = bias[v] + (v == text[w * 16 + i - 1] + 1 ? 0.5f : 0);
                for (int j = 0; j < i; j++) logit += text[w * 16 + j] == v ? 2.0f : 0;
                sum += exp(logit);
                if (v == text[w * 16 + i]) at = logit;
            }
            bits += (log(sum) - at) / log(2);
        }
    CODE(run(fake_counter(), "--weights @ --score @/text --window 16"), 0);
    ck_assert_double_le(fabs(strtod(out, NULL) - bits / 30), 2e-6);
    SAYS(out, "over 30 bytes in 2 windows of 16");
    CODE(run(fake_counter(), "--weights @ --score @/text --window 64"), 1);
    SAYS(err, "shorter than one window");
}
END_TEST

START_TEST(weights_that_are_not_numbers)
{
    static st_file f;
    float odd[256] = {0};
    odd[17] = NAN;
    st_begin(&f);
    st_add(&f, "model.bias", MOEC_F32, 1, (int64_t[]){256}, odd);
    st_write(&f, test_path(dir, "model.safetensors"));
    CODE(run(fake_counter(), "--weights @ --ids 1"), 1);
    SAYS(err, "the logit of id 17 is not a number");
    write_text("text", "abcdefgh");
    CODE(run(fake_counter(), "--weights @ --score @/text --window 4"), 1);
    SAYS(err, "not a number");
}
END_TEST

START_TEST(bench_prints)
{
    CODE(run(fake_counter(), "--weights @ --bench --max-new 4"), 0);
    SAYS(out, "prefill 32 tokens");
    SAYS(out, "decode 4 tokens");
    SAYS(out, "count");
}
END_TEST

START_TEST(packed_file_of_ones_own)
{
    CODE(run(fake_counter(), "--weights @ --ids 1 --max-new 1 --packed @/own.weights"), 0);
    CODE(run(fake_counter(), "--weights @/own.weights --ids 1 --max-new 1"), 0);
    ck_assert_str_eq(out, "1\n");
    CODE(run(fake_layers(), "--weights @/own.weights --bench"), 1);
    SAYS(err, "another model");
}
END_TEST

/* ---- plain tensors --------------------------------------------------------------------------------------------- */

START_TEST(tensors_from_files)
{
    static st_file f;
    float w[16] = {0}, x[8] = {1, 2, 3, 4, -1, -2, -3, -4};
    mc_npy npy;
    mc_fault fault;
    for (int i = 0; i < 4; i++) w[i * 4 + i] = 2;
    st_begin(&f);
    st_add(&f, "a.w", MOEC_F32, 2, (int64_t[]){4, 4}, w);
    st_add(&f, "b.w", MOEC_F32, 2, (int64_t[]){4, 4}, w);
    st_write(&f, test_path(dir, "model.safetensors"));
    ck_assert_int_eq(mc_npy_write(test_path(dir, "x.npy"), MOEC_F32, 2, (int64_t[]){2, 4}, x, &fault), MOEC_OK);
    CODE(run(fake_layers(), "--weights @ --input x=@/x.npy --output y=@/y.npy"), 0);
    ck_assert_msg(mc_npy_read(test_path(dir, "y.npy"), &npy, &fault) == MOEC_OK, "%s", fault.text);
    const float *y = (const float *)(const void *)npy.data.data;
    ck_assert_int_eq(npy.dims[0], 2);
    for (int i = 0; i < 8; i++) ck_assert(y[i] == (x[i] > 0 ? 4 * x[i] : 0));
    mc_npy_fini(&npy);
    double wide[8];
    for (int i = 0; i < 8; i++) wide[i] = x[i];
    ck_assert_int_eq(mc_npy_write(test_path(dir, "x8.npy"), MOEC_F64, 2, (int64_t[]){2, 4}, wide, &fault), MOEC_OK);
    CODE(run(fake_layers(), "--weights @ --input x=@/x8.npy --output y=@/y.npy"), 0); /* other floats are converted */
    ck_assert_int_eq(mc_npy_write(test_path(dir, "x4.npy"), MOEC_I32, 2, (int64_t[]){2, 4}, x, &fault), MOEC_OK);
    CODE(run(fake_layers(), "--weights @ --input x=@/x4.npy --output y=@/y.npy"), 1);
    SAYS(err, "input x is f32, not i32");
    CODE(run(fake_layers(), "--weights @ --input @/x.npy --output @/y.npy"), 0); /* there is only one of each */
    CODE(run(fake_layers(), "--weights @ --input x=@/x.npy"), 2);
    CODE(run(fake_layers(), "--weights @ --input x --output y=@/y.npy"), 2);
    CODE(run(fake_layers(), "--weights @ --input q=@/x.npy --output y=@/y.npy"), 1);
    SAYS(err, "no input named q");
    CODE(run(fake_layers(), "--weights @ --ids 1"), 2);
    CODE(run(fake_layers(), "--weights @ --bench --size T=16"), 0);
    SAYS(out, "T = 16");
}
END_TEST

/* ---- .npy files ------------------------------------------------------------------------------------------------ */

START_TEST(npy_round_trip)
{
    static const moec_dtype types[] = {MOEC_F32, MOEC_F16, MOEC_BF16, MOEC_F64, MOEC_I32,
                                       MOEC_I64, MOEC_I8,  MOEC_U8,   MOEC_BOOL};
    unsigned char data[192];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * 7);
    for (uint32_t rank = 0; rank <= 6; rank++) {
        int64_t dims[6] = {2, 1, 3, 1, 2, 2}, n = 1;
        mc_npy npy;
        mc_fault fault;
        for (uint32_t i = 0; i < rank; i++) n *= dims[i];
        const char *path = test_path(dir, "x.npy");
        ck_assert_int_eq(mc_npy_write(path, types[_i], rank, dims, data, &fault), MOEC_OK);
        ck_assert_msg(mc_npy_read(path, &npy, &fault) == MOEC_OK, "%s", fault.text);
        ck_assert_int_eq(npy.dtype, types[_i]);
        ck_assert_uint_eq(npy.rank, rank);
        ck_assert_mem_eq(npy.dims, dims, rank * sizeof *dims);
        ck_assert_mem_eq(npy.data.data, data, (size_t)n * moec_dtype_bytes(types[_i]));
        mc_npy_fini(&npy);
    }
}
END_TEST

static const struct {
    const char *dict, *says;
    size_t data;
} bad_npy[] = {
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "length", 7},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "length", 9},
    {"{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }", "Fortran", 8},
    {"{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", "element type >f4", 8},
    {"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "element type |O", 8},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }", "larger than memory", 8},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", "natural", 8},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", "natural", 8},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1), }", "more than 6", 4},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': 2, }", "tuple", 8},
    {"{'descr': '<f4', 'fortran_order': False, }", "missing", 0},
    {"{'descr': '<f4', 'descr': '<f4', 'shape': (2,), }", "repeated", 8},
    {"{'descr': '<f4', 'x': 1, 'shape': (2,), }", "unknown", 8},
    {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,", "natural", 8},
    {"{'descr': '<f4", "not a string", 0},
    {"", "no header", 0},
    {"   ", "no dict", 0},
};
enum { N_BAD_NPY = sizeof bad_npy / sizeof *bad_npy };

START_TEST(npy_refused)
{
    unsigned char image[256] = "\x93NUMPY\x01";
    mc_npy npy;
    mc_fault fault = {{0}};
    size_t n = strlen(bad_npy[_i].dict);
    image[8] = (unsigned char)n;
    memcpy(image + 10, bad_npy[_i].dict, n);
    ck_assert_int_ne(mc_npy_parse(image, 10 + n + bad_npy[_i].data, "x", &npy, &fault), MOEC_OK);
    SAYS(fault.text, bad_npy[_i].says);
    for (size_t shorter = 0; shorter < 10 + n; shorter++)
        ck_assert_int_ne(mc_npy_parse(image, shorter, "x", &npy, &fault), MOEC_OK);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("app");
    TCase *t = tcase_create("app");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, help_and_info);
    tcase_add_loop_test(t, wrong_command_lines, 0, N_USAGES);
    tcase_add_test(t, exit_codes);
    tcase_add_test(t, ranks_say_what_one_says);
    tcase_add_test(t, ranks_write_what_one_writes);
    tcase_add_test(t, ranks_fail_together);
    tcase_add_test(t, info_shows_the_plan);
    tcase_add_test(t, greedy_ids);
    tcase_add_test(t, text_and_seeds);
    tcase_add_test(t, end_of_sequence);
    tcase_add_test(t, logits_file);
    tcase_add_test(t, score_of_a_file);
    tcase_add_test(t, weights_that_are_not_numbers);
    tcase_add_test(t, bench_prints);
    tcase_add_test(t, packed_file_of_ones_own);
    tcase_add_test(t, tensors_from_files);
    tcase_add_loop_test(t, npy_round_trip, 0, 9);
    tcase_add_loop_test(t, npy_refused, 0, N_BAD_NPY);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
