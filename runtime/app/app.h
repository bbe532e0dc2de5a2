/* app: the command line of an ahead-of-time executable. The same code serves `moec run`, which calls mc_app_main with a
 * model it has just compiled. */
#ifndef MC_RUNTIME_APP_H
#define MC_RUNTIME_APP_H

#include "moec/comm.h"
#include "moec/gpu.h"
#include "runtime/abi.h"
#include "runtime/base/str.h"
#include "runtime/pages.h"

#include <stdio.h>

/* 0 done, 1 something failed, 2 wrong command line, 3 no processor or GPU here can run the model, 75 something failed
 * on some rank of a group, of which all have stopped. */
enum { MC_APP_OK = 0, MC_APP_FAILED = 1, MC_APP_USAGE = 2, MC_APP_CPU = 3, MC_APP_GROUP = 75 };

/* The code in a program: for a CPU, for GPUs, or both. */
typedef struct mc_app_code {
    bool has_cpu;
    const struct moec_abi_model *cpu; /* NULL with has_cpu: of another version */
    const void *image;                /* for GPUs (moec_model_from_image), or NULL */
    size_t image_bytes;
} mc_app_code;

/* The whole program: argv[0] is its own path. */
int mc_app_main(const mc_app_code *code, int argc, char **argv);

/* What main() runs: an executable is linked with these names defined as its model's query function and image; one that
 * it does not have stays without address. */
const struct moec_abi_model *moec_app_query(uint32_t version) __attribute__((weak));
extern const moec_gpu_image moec_app_gpu_image __attribute__((weak));

typedef enum mc_app_option {
#define MC_APP_OPTION(ID, name, value, help) MC_APP_##ID,
#include "runtime/app/app_options.def"
#undef MC_APP_OPTION
    MC_APP_N_OPTIONS
} mc_app_option;

enum { MC_APP_MAX_VALUES = 16 }; /* of a repeatable option */

typedef struct mc_app_route mc_app_route;

typedef struct mc_app {
    const struct moec_abi_model *abi; /* of the code that was chosen */
    const char *path;                 /* argv[0] */
    const char *name;                 /* its last part, for messages */
    const char *values[MC_APP_N_OPTIONS][MC_APP_MAX_VALUES];
    int n_values[MC_APP_N_OPTIONS]; /* of a flag: how often it was given */
    const char *weights_path;
    char beside[4128]; /* room for it */
    moec_model *model;
    moec_weights *weights;
    moec_session *session;
    moec_gpu *gpu;       /* where it runs; NULL: on the processor, or nowhere */
    moec_error why;      /* it does not run on a GPU */
    mc_app_route *route; /* choices of experts are recorded or replayed; NULL: neither */

    moec_comm *comm; /* NULL: no group */
    uint32_t rank, size;
    uint32_t default_threads; /* 0: as many as there are */
    double next_beat;
    moec_limit share; /* the greatest size of what is shared out; NULL: not known */
    moec_error *said; /* the first thing that went wrong, for the others */
} mc_app;

typedef int mc_app_command(mc_app *app);

/* ---- app_options.c ---- */

/* Fills values. False: wrong (the message is printed). */
bool mc_app_parse(mc_app *app, int argc, char **argv);
void mc_app_help(const mc_app *app);
static inline bool
mc_app_has(const mc_app *app, mc_app_option option)
{
    return app->n_values[option] > 0;
}
/* NULL when not given. */
const char *mc_app_value(const mc_app *app, mc_app_option option);
/* The option's number, `otherwise` when not given. False: not a number in lo..hi (printed). */
bool mc_app_integer(const mc_app *app, mc_app_option option, int64_t lo, int64_t hi, int64_t otherwise, int64_t *out);
bool mc_app_real(const mc_app *app, mc_app_option option, double lo, double hi, double otherwise, double *out);

/* ---- app_device.c ---- */

/* Decides by --device and by what there is; sets abi, model, gpu and why. A device that is missing is no error yet.
 * Returns an exit code. */
int mc_app_choose(mc_app *app, const mc_app_code *code);
/* Whether the model can run: else prints why. Returns an exit code. */
int mc_app_check_device(const mc_app *app);
void mc_app_print_device(const mc_app *app);

/* ---- app_ranks.c ---- */

/* Joins the group when the model wants one or --comm says so. Returns an exit code. */
int mc_app_join(mc_app *app);
/* Frees what belongs to this rank, tells the others when it failed, and gives the exit code. */
int mc_app_leave(mc_app *app, int result);
/* --comm threads: every rank is a thread of this process. Runs the command on all of them; returns an exit code. */
bool mc_app_is_played(const mc_app *app);
int mc_app_play(mc_app *app, mc_app_command *command);

/* While weights are opened some ranks have less to do than others: called now and then, and at the end, so that waiting
 * for them is no failure. */
void mc_app_still_opening(mc_app *app);
int mc_app_has_opened(mc_app *app);

/* Of n rows rank r has those from first(r) to first(r + 1), count of them on this rank and at most `most` on any. */
size_t mc_app_first(const mc_app *app, size_t n, uint32_t rank);
size_t mc_app_count(const mc_app *app, size_t n);
size_t mc_app_most(const mc_app *app, size_t n);
/* From each rank's rows in *pages to all rows on rank 0 and none on the others. */
int mc_app_collect(mc_app *app, size_t n_rows, size_t row_bytes, mc_pages *pages);
/* rows has all n_rows, of which this rank has filled its own: afterwards everybody's. */
int mc_app_share(mc_app *app, void *rows, size_t n_rows, size_t row_bytes);
/* What rank 0 says, on all. */
int mc_app_decide(mc_app *app, bool *decision);

/* ---- app.c ---- */

/* Prints "name: text" on standard error and gives the exit code back. */
int mc_app_usage(const mc_app *app, const char *format, ...) MOEC_PRINTF(2, 3);
int mc_app_fail(const mc_app *app, const char *format, ...) MOEC_PRINTF(2, 3);
/* Opens weights and session; sizes come from the caller, --threads and --size are added. */
int mc_app_open(mc_app *app, const moec_session_options *sizes);
/* Whether this rank prints and writes. */
static inline bool
mc_app_speaks(const mc_app *app)
{
    return app->rank == 0;
}
/* moec_weights_options.progress for a terminal; context: an int that starts at -1 and holds the last percentage. */
void mc_app_show_packing(void *last_percent, uint64_t done, uint64_t total);
/* Whether everything printed has arrived; a closed pipe is quiet. */
int mc_app_finish_output(const mc_app *app);

/* ---- commands: each prints what went wrong and gives the exit code ---- */

int mc_app_generate(mc_app *app); /* generate.c */
int mc_app_tensors(mc_app *app);  /* tensors.c */
int mc_app_info(mc_app *app);     /* app_info.c */
int mc_app_bench(mc_app *app);    /* measure.c */
int mc_app_score(mc_app *app);

/* ---- app_route.c: steps, whose choices of experts are recorded (--trace) or given (--replay) where that was asked for
 * ---- */

/* Whether the model can do what was asked; what begins is closed in any case. */
int mc_app_route_begin(mc_app *app);
/* With the session: opens the files. */
int mc_app_route_open(mc_app *app);
/* The file appears, and what happened is printed. */
int mc_app_route_finish(mc_app *app);
void mc_app_route_close(mc_app *app);
/* moec_session_feed and moec_session_run: each prints what went wrong. */
int mc_app_feed(mc_app *app, const int32_t *ids, size_t n_sequences, size_t n_tokens, float *logits);
int mc_app_run(mc_app *app, const moec_tensor *inputs, size_t n_inputs, moec_tensor *outputs, size_t n_outputs);
/* moec_model_vocab, of a model that takes choices of experts, too. */
int64_t mc_app_vocab(const mc_app *app);

/* ---- ids.c ---- */

typedef struct mc_app_ids {
    int32_t *ids; /* [n_sequences][n_tokens] */
    size_t n_sequences, n_tokens;
} mc_app_ids;

/* From --ids (a list, several lists apart by ';', or a .npy file) or --prompt. Returns an exit code. */
int mc_app_read_ids(const mc_app *app, mc_app_ids *out);
/* End-of-sequence ids: --eos, else generation_config.json or config.json of the weights directory. Returns their
 * number. */
enum { MC_APP_MAX_EOS = 16 };
size_t mc_app_eos(const mc_app *app, int32_t *out);
/* "1,2,3": at most `most` numbers; -1: malformed. */
int mc_app_list(const char *text, int32_t *out, int most);

#endif
