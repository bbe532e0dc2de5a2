/* moec train: compile a language model for training and train it (driver/train). */
#define _POSIX_C_SOURCE 200809L
#include "driver/command.h"
#include "driver/compiled.h"
#include "driver/progress.h"
#include "driver/train/train_report.h"
#include "runtime/app/app.h"
#include "runtime/base/hash.h"
#include "runtime/comm/comm.h"
#include "runtime/ranks.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* ---- an interrupt ends the run after the step it comes in; a second one ends the process ---- */

static volatile sig_atomic_t interrupted; /* the signal's number */

static void
on_signal(int number)
{
    interrupted = number;
}

static void
catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND | SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* ---- options ---- */

/* A whole number of at least `least`; *out stays when the option is absent. */
static bool
read_count(const mc_cli *cli, mc_option option, uint64_t least, uint64_t *out)
{
    const char *text = mc_cli_value(cli, option);
    char *end;
    if (!text) return true;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (*text >= '0' && *text <= '9' && !*end && !errno && value >= least) {
        *out = value;
        return true;
    }
    mc_cli_usage("--%s takes a whole number%s, not '%s'", mc_option_infos[option].name, least ? " above 0" : "", text);
    return false;
}

static bool
read_deadline(const mc_cli *cli, double *out)
{
    const char *text = mc_cli_value(cli, MC_OPTION_DEADLINE);
    char *end;
    if (!text) return true;
    *out = strtod(text, &end);
    if (end != text && !*end && *out >= 0.01 && *out <= 1e6) return true;
    mc_cli_usage("--deadline is a number of seconds from 0.01 to 1e+06, not '%s'", text);
    return false;
}

typedef struct train_command {
    moec_compile_options compile;
    mc_train_options run;
    uint64_t checkpoint_every, log_every;
    double deadline; /* of waiting for another rank; 0: the default */
    bool json, check;
} train_command;

static bool
read_options(const mc_cli *cli, train_command *c)
{
    uint64_t n_threads = 0;
    *c = (train_command){0};
    if (!mc_command_options(cli, &c->compile)) return false;
    c->json = mc_cli_has(cli, MC_OPTION_JSON);
    c->check = mc_cli_has(cli, MC_OPTION_CHECK_ONLY);
    mc_train_options *o = &c->run;
    o->data = mc_cli_value(cli, MC_OPTION_DATA);
    o->out = mc_cli_value(cli, MC_OPTION_OUT);
    o->weights = mc_cli_value(cli, MC_OPTION_WEIGHTS);
    o->resume = mc_cli_has(cli, MC_OPTION_RESUME);
    o->has_seed = mc_cli_has(cli, MC_OPTION_SEED);
    if (!read_count(cli, MC_OPTION_STEPS, 1, &o->n_steps) || !read_count(cli, MC_OPTION_BATCH, 1, &o->batch) ||
        !read_count(cli, MC_OPTION_LENGTH, 1, &o->length) ||
        !read_count(cli, MC_OPTION_ACCUMULATE, 1, &o->accumulate) || !read_count(cli, MC_OPTION_SEED, 0, &o->seed) ||
        !read_count(cli, MC_OPTION_CHECKPOINT_EVERY, 1, &c->checkpoint_every) ||
        !read_count(cli, MC_OPTION_LOG_EVERY, 1, &c->log_every) || !read_count(cli, MC_OPTION_THREADS, 1, &n_threads) ||
        !read_deadline(cli, &c->deadline))
        return false;
    o->n_threads = n_threads < UINT32_MAX ? (uint32_t)n_threads : UINT32_MAX;
    const char *fault = !o->data                         ? "train needs a text to learn from: --data FILE"
                        : o->resume && !o->out           ? "--resume needs the directory of the run: --out DIR"
                        : o->resume && o->weights        ? "--resume and --weights exclude each other"
                        : c->checkpoint_every && !o->out ? "--checkpoint-every needs a directory: --out DIR"
                                                         : NULL;
    if (fault) mc_cli_usage("%s", fault);
    return !fault;
}

/* Of the text and of all that overrides it: a run can only go on with the same model. */
static moec_status
hash_model(const char *path, const moec_compile_options *o, uint64_t *out, mc_fault *fault)
{
    mc_mapping text;
    moec_status s = mc_file_map(path, &text, fault);
    if (s != MOEC_OK) return s;
    *out = mc_hash64(text.data ? text.data : (const unsigned char *)"", text.n_bytes, 0);
    mc_file_unmap(&text);
    for (size_t i = 0; i < o->n_defines; i++) *out = mc_hash64(o->defines[i], strlen(o->defines[i]), *out + 1);
    for (size_t i = 0; i < o->n_settings; i++) *out = mc_hash64(o->settings[i], strlen(o->settings[i]), *out + 2);
    if (o->model) *out = mc_hash64(o->model, strlen(o->model), *out + 3);
    if (o->frozen) *out = mc_hash64(o->frozen, strlen(o->frozen), *out + 4);
    return MOEC_OK;
}

/* ---- the run ---- */

static moec_status
save(mc_trainer *t, const mc_train_printer *printer, mc_fault *fault)
{
    moec_status s = mc_trainer_save(t, fault);
    if (s == MOEC_OK && t->ranks.rank == 0) mc_train_print_checkpoint(printer, t->options.out, t->state.at.step);
    return s;
}

static moec_status
run(mc_trainer *t, const train_command *c, mc_fault *fault)
{
    mc_train_printer printer = mc_train_printer_default(c->json, c->log_every);
    const mc_train_position *at = &t->state.at;
    moec_status s = MOEC_OK;
    bool speaks = t->ranks.rank == 0, stop = false;
    catch_signals();
    if (speaks) mc_train_print_begin(&printer, t);
    if (!c->run.out && speaks) fputs("moec: without --out what is learnt is lost at the end\n", stderr);
    while (at->step < at->n_steps && !stop && s == MOEC_OK) {
        mc_train_report report;
        s = mc_trainer_step(t, &report, fault);
        if (s != MOEC_OK) break;
        if (speaks) mc_train_print_step(&printer, t, &report);
        stop = interrupted;
        s = mc_train_ranks_any(&t->ranks, &stop, fault);
        if (s != MOEC_OK) break;
        bool due = at->step == at->n_steps || stop || (c->checkpoint_every && at->step % c->checkpoint_every == 0);
        if (due && c->run.out) s = save(t, &printer, fault);
    }
    if (speaks) mc_train_print_clear(&printer);
    return s;
}

static moec_status
train(const train_command *c, const moec_abi_model *abi, const moec_model *model, mc_fault *fault)
{
    mc_trainer trainer;
    moec_status s = mc_trainer_open(model, abi, &c->run, &trainer, fault);
    if (s != MOEC_OK) return s;
    if (c->check) {
        mc_train_printer printer = mc_train_printer_default(false, 0);
        if (trainer.ranks.rank == 0) mc_train_print_begin(&printer, &trainer);
    } else {
        s = run(&trainer, c, fault);
    }
    mc_trainer_close(&trainer);
    return s;
}

static int
failed_with_others(moec_comm *comm, const mc_fault *fault)
{
    uint32_t rank = moec_comm_rank(comm);
    mc_comm_abort(comm, fault->text);
    moec_comm_close(comm);
    fprintf(stderr, "moec: rank %u: %s\n", rank, fault->text);
    return MC_APP_GROUP;
}

/* On the ranks that the model is planned for: of a group the first one speaks. */
static int
train_on_ranks(train_command *c, const moec_abi_model *abi, const moec_model *model)
{
    mc_fault fault = {0};
    moec_error error = {0};
    moec_comm *comm = NULL;
    moec_comm_options group = {.deadline_seconds = c->deadline};
    if (mc_ranks_needed(abi) > 1 && moec_comm_open(&group, &comm, &error) != MOEC_OK) {
        mc_command_failed(MOEC_ERR_COMM, error.text);
        return MC_APP_GROUP;
    }
    c->run.comm = comm;
    if (!c->run.n_threads) c->run.n_threads = mc_ranks_threads(comm);
    moec_status s = train(c, abi, model, &fault);
    if (s != MOEC_OK && comm && moec_comm_size(comm) > 1) return failed_with_others(comm, &fault);
    moec_comm_close(comm);
    if (s != MOEC_OK) return mc_command_failed(s, fault.text);
    return interrupted ? 128 + interrupted : MC_EXIT_OK;
}

int
mc_cmd_train(const mc_cli *cli)
{
    train_command c;
    if (!read_options(cli, &c)) return MC_EXIT_USAGE;
    const char *path = mc_cli_one_file(cli);
    if (!path) return MC_EXIT_USAGE;
    mc_fault fault = {0};
    moec_status s = hash_model(path, &c.compile, &c.run.model_hash, &fault);
    if (s != MOEC_OK) return mc_command_failed(s, fault.text);
    moec_compiled *compiled;
    mc_progress_begin();
    s = moec_compile_file(path, &c.compile, &compiled);
    mc_progress_end();
    if (s != MOEC_OK) return mc_command_exit_code(s);
    const moec_abi_model *abi;
    moec_model *model;
    moec_error error = {0};
    int code;
    s = mc_compiled_abi(compiled, &abi, &fault);
    if (s != MOEC_OK)
        code = mc_command_failed(s, fault.text);
    else if ((s = moec_compiled_load(compiled, &model, &error)) != MOEC_OK)
        code = mc_command_failed(s, error.text);
    else
        code = train_on_ranks(&c, abi, model);
    moec_compiled_destroy(compiled);
    return code;
}
