/* The harness: one function runs every step of every pipeline.
 *
 *   text ──parse──> steps ──order──> verify input ──┐
 *                                                   v
 *   for each step:   stage fits? ── skipped? ── run (fuel, time) ── changed? ── verify ── round trip ── dump
 *                         │                         │                  │ no                              │
 *                       E0503                     failed          text unchanged?                     report
 *
 * Passes print nothing, time nothing and verify nothing of their own. */
#include "passes/pass.h"

#include "ir/op.h"
#include "ir/print.h"
#include "ir/verify.h"
#include "passes/pipeline.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/hash.h"

#include <assert.h>
#include <string.h>

typedef struct runner {
    mc_module *module;
    const mc_pass_options *options;
    mc_diags *diags;
    mc_arena *scratch; /* one step */
    int64_t fuel_left; /* < 0: unlimited */
    int n_steps;
    uint64_t hash; /* of the text before the step, when check_unchanged */
    mc_buf input;  /* the text before the pipeline, when somebody wants reproducers */
    mc_str pipeline_text;
} runner;

mc_pass_options
mc_pass_options_default(void)
{
    mc_pass_options o = {0};
#ifndef NDEBUG
    o.verify_each = o.roundtrip_each = o.check_unchanged = true;
#endif
    return o;
}

bool
mc_fuel(mc_pass *p, const mc_op *site)
{
    if (p->fuel_left == 0) return false;
    p->n_rewrites++;
    if (p->fuel_left > 0 && --p->fuel_left == 0) {
        mc_buf text = {0};
        mc_op_print(site, &text);
        p->last_rewrite = mc_str_dup(p->scratch, mc_buf_view(&text));
        mc_buf_fini(&text);
    }
    return true;
}

int64_t
mc_pass_option(const mc_pass *p, const char *name)
{
    for (size_t i = 0; i < p->step->settings.n; i++)
        if (mc_str_is(p->step->settings.items[i].key, name)) return p->step->settings.items[i].value;
    for (size_t i = 0; i < p->options->n_settings; i++)
        if (mc_str_is(p->options->settings[i].key, name)) return p->options->settings[i].value;
    const mc_pass_option_info *info = p->info->options;
    while (info->name && strcmp(info->name, name) != 0) info++;
    assert(info->name);
    return info->value;
}

mc_pass_result
mc_pass_over_funcs(mc_pass *p, mc_module *m, mc_func_fn *fn)
{
    mc_pass_result result = MC_UNCHANGED;
    MC_FOR_FUNCS(f, m)
    {
        mc_pass_result r = fn(p, f);
        if (r == MC_FAILED) return r;
        if (r == MC_CHANGED) result = r;
    }
    return result;
}

static uint64_t
text_hash(const mc_module *m)
{
    mc_buf text = {0};
    mc_module_print(m, &text);
    uint64_t hash = mc_hash64(text.data, text.len, 0);
    mc_buf_fini(&text);
    return hash;
}

/* A fault of moec: says so, and hands out what is needed to see it again. */
static bool
internal(runner *r, const char *pass, const char *what)
{
    mc_error(r->diags, (mc_span){0}, MC_E0504, "pass '%s' %s", pass, what);
    if (!r->options->on_reproducer) return false;
    mc_buf text = {0};
    mc_buf_printf(&text, "# moec %s --passes='%.*s'", MOEC_VERSION_STRING, MC_FMT(r->pipeline_text));
    for (size_t i = 0; i < r->options->n_skip; i++) mc_buf_printf(&text, " --skip=%.*s", MC_FMT(r->options->skip[i]));
    for (size_t i = 0; i < r->options->n_settings; i++)
        mc_buf_printf(&text, " --%.*s=%lld", MC_FMT(r->options->settings[i].key),
                      (long long)r->options->settings[i].value);
    if (r->options->limit_fuel) mc_buf_printf(&text, " --fuel=%lld", (long long)r->options->fuel);
    mc_buf_putc(&text, '\n');
    mc_buf_str(&text, mc_buf_view(&r->input));
    r->options->on_reproducer(r->options->user, mc_buf_view(&text));
    mc_buf_fini(&text);
    return false;
}

static bool
roundtrip(const mc_module *m, mc_arena *scratch)
{
    mc_buf once = {0}, twice = {0};
    mc_module_print(m, &once);
    mc_sources sources = {.arena = scratch};
    mc_diags diags;
    mc_diags_init(&diags, scratch, &sources);
    uint32_t file = mc_sources_add(&sources, MC_STR("round trip"), mc_buf_view(&once));
    mc_module *copy = mc_module_read(&sources, file, &diags);
    if (copy) mc_module_print(copy, &twice);
    bool same = copy && mc_str_eq(mc_buf_view(&once), mc_buf_view(&twice));
    mc_module_destroy(copy);
    mc_buf_fini(&once);
    mc_buf_fini(&twice);
    return same;
}

static bool
dump(runner *r, const char *name)
{
    if (!r->options->dump_dir) return true;
    mc_fault fault = {{0}};
    mc_buf path = {0}, text = {0};
    mc_buf_printf(&path, "%s/%02d-%s.moir", r->options->dump_dir, r->n_steps, name);
    mc_module_print(r->module, &text);
    bool ok = mc_make_directories(r->options->dump_dir, &fault) == MOEC_OK &&
              mc_file_write(path.data, text.data, text.len, 0644, &fault) == MOEC_OK;
    if (!ok) mc_error(r->diags, (mc_span){0}, MC_E0910, "%s", fault.text);
    mc_buf_fini(&path);
    mc_buf_fini(&text);
    return ok;
}

static bool
skipped(const runner *r, const char *name)
{
    for (size_t i = 0; i < r->options->n_skip; i++)
        if (mc_str_is(r->options->skip[i], name)) return true;
    return false;
}

static bool
check_result(runner *r, const mc_pass *p, mc_pass_result result, int n_errors)
{
    const mc_pass_options *o = r->options;
    const char *name = p->info->name;
    if (result == MC_FAILED)
        return r->diags->n_errors > n_errors ? false : internal(r, name, "failed without a reason");
    if (r->diags->n_errors > n_errors) return internal(r, name, "reported an error but did not fail");
    if (result == MC_UNCHANGED)
        return !o->check_unchanged || text_hash(r->module) == r->hash ||
               internal(r, name, "changed the module and said that it did not");
    if (o->verify_each && !mc_module_verify(r->module, r->diags)) return internal(r, name, "left a malformed module");
    if (o->roundtrip_each && !roundtrip(r->module, r->scratch))
        return internal(r, name, "left a module whose text does not read back as itself");
    if (o->check_unchanged) r->hash = text_hash(r->module);
    return dump(r, name);
}

static void
report(runner *r, const mc_step_report *step)
{
    if (r->options->on_step) r->options->on_step(r->options->user, step);
}

static const char *
stage_name(mc_stage stage)
{
    switch (stage) {
    case MC_STAGE_TENSOR: return "tensor";
    case MC_STAGE_DIST: return "dist";
    case MC_STAGE_PLAN: return "plan";
    }
    return "?";
}

static bool
run_pass(runner *r, const mc_step *step, bool *changed)
{
    const mc_pass_info *info = step->pass;
    mc_step_report out = {.index = ++r->n_steps, .pass = info->name, .module = r->module};
    if (skipped(r, info->name)) {
        out.skipped = true;
        report(r, &out);
        return true;
    }
    if (!(info->stages & 1u << r->module->stage))
        return mc_error(r->diags, (mc_span){0}, MC_E0503, "'%s' does not run on a module of stage %s", info->name,
                        stage_name(r->module->stage));
    mc_pass p = {.info = info,
                 .diags = r->diags,
                 .scratch = r->scratch,
                 .step = step,
                 .options = r->options,
                 .fuel_left = info->required ? -1 : r->fuel_left};
    int n_errors = r->diags->n_errors;
    double start = mc_seconds();
    mc_pass_result result = info->run(&p, r->module);
    out.seconds = mc_seconds() - start;
    if (!info->required) r->fuel_left = p.fuel_left;
    if (info->to_plan && result != MC_FAILED) r->module->stage = MC_STAGE_PLAN;
    bool ok = check_result(r, &p, result, n_errors);
    out.result = result;
    out.n_rewrites = p.n_rewrites;
    out.last_rewrite = p.last_rewrite;
    report(r, &out);
    mc_arena_reset(r->scratch);
    if (result == MC_CHANGED) *changed = true;
    return ok;
}

static bool
run_steps(runner *r, const mc_pipeline *pipeline, bool *changed)
{
    for (size_t i = 0; i < pipeline->n; i++) {
        const mc_step *step = &pipeline->items[i];
        int rounds = step->kind == MC_STEP_REPEAT ? MC_REPEAT_ROUNDS : 1;
        bool again = true;
        for (int round = 0; again && round < rounds; round++) {
            again = false;
            if (!(step->kind == MC_STEP_PASS ? run_pass(r, step, &again) : run_steps(r, &step->body, &again)))
                return false;
            if (again) *changed = true;
        }
    }
    return true;
}

static bool
check_options(const mc_pass_options *o, mc_diags *d)
{
    for (size_t i = 0; i < o->n_skip; i++) {
        const mc_pass_info *info = mc_pass_find(o->skip[i]);
        if (!info) return mc_error(d, (mc_span){0}, MC_E0501, "no pass '%.*s' to skip", MC_FMT(o->skip[i]));
        if (info->required)
            return mc_error(d, (mc_span){0}, MC_E0501, "'%s' cannot be skipped: a plan needs it", info->name);
    }
    for (size_t i = 0; i < o->n_settings; i++) {
        const mc_pass_setting *s = &o->settings[i];
        bool known = false;
        for (int k = 0; k < mc_n_passes; k++)
            for (const mc_pass_option_info *info = mc_passes[k].options; info->name; info++) {
                if (!mc_str_is(s->key, info->name)) continue;
                known = true;
                if (s->value < info->least || s->value > info->greatest)
                    return mc_error(d, (mc_span){0}, MC_E0501, "option '%s' takes an integer from %lld to %lld",
                                    info->name, (long long)info->least, (long long)info->greatest);
            }
        if (!known) return mc_error(d, (mc_span){0}, MC_E0501, "no pass has an option '%.*s'", MC_FMT(s->key));
    }
    return true;
}

static bool
run_all(runner *r, const mc_pipeline *pipeline)
{
    if (r->options->verify_each && !mc_module_verify(r->module, r->diags)) return false;
    if (r->options->on_reproducer) mc_module_print(r->module, &r->input);
    if (r->options->check_unchanged) r->hash = text_hash(r->module);
    bool changed = false;
    return dump(r, "input") && run_steps(r, pipeline, &changed);
}

bool
mc_pipeline_run(const mc_pipeline *pipeline, mc_module *m, mc_str text, const mc_pass_options *options, mc_diags *diags)
{
    assert(!options->limit_fuel || options->fuel >= 0);
    runner r = {.module = m,
                .options = options,
                .diags = diags,
                .scratch = mc_arena_create(),
                .fuel_left = options->limit_fuel ? options->fuel : -1,
                .pipeline_text = text};
    bool ok = check_options(options, diags) && run_all(&r, pipeline);
    mc_buf_fini(&r.input);
    mc_arena_destroy(r.scratch);
    return ok;
}

bool
mc_run_pipeline(mc_module *m, mc_str pipeline_text, const mc_pass_options *options, mc_diags *diags)
{
    mc_arena *arena = mc_arena_create();
    mc_pipeline pipeline;
    bool ok = mc_pipeline_parse(pipeline_text, arena, diags, &pipeline) &&
              mc_pipeline_check_order(&pipeline, arena, diags) &&
              mc_pipeline_run(&pipeline, m, pipeline_text, options, diags);
    mc_arena_destroy(arena);
    return ok;
}
