#define _POSIX_C_SOURCE 200809L
#include "driver/train/train_report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LOADS_EVERY = 10 };

static bool
is_utf8(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (int i = 0; i < 3; i++) {
        const char *value = getenv(names[i]);
        if (value && *value) return strstr(value, "UTF-8") || strstr(value, "utf8");
    }
    return false;
}

mc_train_printer
mc_train_printer_default(bool json, uint64_t every)
{
    return (mc_train_printer){.out = stdout,
                              .terminal = !json && isatty(STDERR_FILENO) ? stderr : NULL,
                              .json = json,
                              .utf8 = is_utf8(),
                              .every = every ? every : 10};
}

static double
tokens_per_second(const mc_trainer *t, const mc_train_report *r)
{
    double n = (double)t->options.batch * (double)t->options.length * (double)t->options.accumulate;
    return r->seconds > 0 ? n / r->seconds : 0;
}

void
mc_train_print_clear(const mc_train_printer *p)
{
    if (p->terminal) fputs("\r\033[K", p->terminal);
}

/* No end of line: it may be rewritten. */
static void
print_line(FILE *out, const mc_trainer *t, const mc_train_report *r)
{
    fprintf(out, "step %" PRIu64 "/%" PRIu64 "  loss %.4f", r->step, t->options.n_steps, r->loss);
    if (t->settings.aux_weight > 0 || t->settings.z_weight > 0) fprintf(out, "  ce %.4f", r->cross_entropy);
    if (t->settings.aux_weight > 0) fprintf(out, "  aux %.4f", r->aux);
    if (t->settings.z_weight > 0) fprintf(out, "  z %.4f", r->z);
    fprintf(out, "  |g| %.3f  lr %.3g  %.0f ms  %.0f tokens/s", r->grad_norm, r->lr, r->seconds * 1e3,
            tokens_per_second(t, r));
}

static void
print_loads(const mc_train_printer *p, const mc_trainer *t)
{
    int width = 0;
    for (size_t i = 0; i < t->state.routes.n_loads; i++)
        if ((int)strlen(t->state.routes.loads[i].scope) > width) width = (int)strlen(t->state.routes.loads[i].scope);
    for (size_t i = 0; i < t->state.routes.n_loads; i++) {
        char bar[MC_TRAIN_BAR_BYTES];
        double vio = mc_train_bar(t->state.routes.loads[i].sum, t->state.routes.loads[i].n_experts, p->utf8, bar);
        fprintf(p->out, "  %-*s  %s  MaxVio %.2f\n", width, t->state.routes.loads[i].scope, bar, vio);
    }
}

static void
print_json(const mc_train_printer *p, const mc_trainer *t, const mc_train_report *r)
{
    fprintf(p->out,
            "{\"step\":%" PRIu64 ",\"loss\":%.9g,\"cross_entropy\":%.9g,\"aux\":%.9g,\"z\":%.9g,\"grad_norm\":%.9g,"
            "\"lr\":%.9g,\"ms\":%.3f,\"tokens_per_second\":%.1f,\"loads\":{",
            r->step, r->loss, r->cross_entropy, r->aux, r->z, r->grad_norm, r->lr, r->seconds * 1e3,
            tokens_per_second(t, r));
    for (size_t i = 0; i < t->state.routes.n_loads; i++) {
        fprintf(p->out, "%s\"%s\":[", i ? "," : "", t->state.routes.loads[i].scope);
        for (size_t e = 0; e < t->state.routes.loads[i].n_experts; e++)
            fprintf(p->out, "%s%.0f", e ? "," : "", (double)t->state.routes.loads[i].sum[e]);
        fputs("]", p->out);
    }
    fputs("}}\n", p->out);
}

void
mc_train_print_begin(const mc_train_printer *p, const mc_trainer *t)
{
    const mc_train_options *o = &t->options;
    uint32_t n_threads = moec_threads_count(t->threads);
    if (p->json) return;
    fprintf(p->out, "%s: %" PRIu64 " parameters, %" PRIu64 " of them trained", moec_model_name(t->model),
            t->state.params.n_values, t->state.params.n_trained);
    if (t->ranks.size > 1) fprintf(p->out, ", on each of %u ranks", t->ranks.size);
    fprintf(p->out, "; %s: %zu ids\n", o->data, t->data.n_tokens);
    fprintf(p->out, "steps %" PRIu64 "..%" PRIu64 " of ", t->state.at.step + 1, o->n_steps);
    if (o->accumulate > 1) fprintf(p->out, "%" PRIu64 " x ", o->accumulate);
    fprintf(p->out, "%" PRIu64 " x %" PRIu64 " tokens, seed %" PRIu64 ", %u thread%s, %.1f MB\n", o->batch, o->length,
            o->seed, n_threads, n_threads > 1 ? "s" : "", (double)mc_trainer_bytes(t) / 1e6);
    fflush(p->out);
}

void
mc_train_print_step(mc_train_printer *p, const mc_trainer *t, const mc_train_report *r)
{
    bool last = r->step == t->options.n_steps;
    mc_train_print_clear(p);
    if (r->step % p->every == 0 || last) {
        if (p->json) {
            print_json(p, t, r);
        } else {
            print_line(p->out, t, r);
            fputc('\n', p->out);
            if (++p->n_lines % LOADS_EVERY == 0 || last) print_loads(p, t);
        }
        fflush(p->out);
    }
    if (p->terminal && !last) {
        print_line(p->terminal, t, r);
        fflush(p->terminal);
    }
}

void
mc_train_print_checkpoint(const mc_train_printer *p, const char *directory, uint64_t step)
{
    mc_train_print_clear(p);
    if (p->json)
        fprintf(p->out, "{\"checkpoint\":\"step-%06" PRIu64 "\"}\n", step);
    else
        fprintf(p->out, "wrote %s/step-%06" PRIu64 "\n", directory, step);
    fflush(p->out);
}
