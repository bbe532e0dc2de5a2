#include "driver/unit.h"

#include "ir/op.h"
#include "ir/print.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { MAX_TEXT_BYTES = 64 << 20, MAX_CONFIG_BYTES = 16 << 20 };

void
mc_unit_init(mc_unit *u, const moec_compile_options *options)
{
    *u = (mc_unit){.arena = mc_arena_create(), .options = options};
    u->sources.arena = u->arena;
    mc_diags_init(&u->diags, u->arena, &u->sources);
}

void
mc_unit_fini(mc_unit *u)
{
    mc_module_destroy(u->module);
    mc_arena_destroy(u->arena);
    *u = (mc_unit){0};
}

bool
mc_unit_text(mc_unit *u, const char *name, const char *text, size_t n_bytes)
{
    u->file = mc_sources_add(&u->sources, mc_str_of(name), (mc_str){text, n_bytes});
    return true;
}

bool
mc_unit_wants_cpu(const moec_compile_options *options)
{
    return !options->gpu || options->target;
}

bool
mc_unit_begin_gpu(mc_unit *u, const mc_unit *cpu)
{
    const mc_source *source = mc_source_of(&cpu->sources, (mc_span){cpu->file, 0, 0});
    mc_unit_init(u, cpu->options);
    u->gpu = true;
    bool good = mc_unit_text(u, source->name.data, source->text.data, source->text.len) && mc_unit_elaborate(u);
    if (good) u->n_delivered = u->diags.list.n;
    return good;
}

bool
mc_unit_load(mc_unit *u, const char *path)
{
    mc_buf text = {0};
    mc_fault fault = {0};
    bool good = mc_file_read(path, MAX_TEXT_BYTES, &text, &fault) == MOEC_OK;
    if (good)
        good = mc_unit_text(u, path, text.data ? text.data : "", text.len);
    else
        mc_error(&u->diags, (mc_span){0}, MC_E0909, "%s", fault.text);
    mc_buf_fini(&text);
    return good;
}

/* `use "x.moe"` is looked up beside the file that says it. */
static bool
load_use(void *user, mc_arena *arena, mc_str from, mc_str path, mc_str *out_name, mc_str *out_text)
{
    (void)user;
    size_t directory = from.len;
    while (directory && from.data[directory - 1] != '/') directory--;
    bool absolute = path.len && path.data[0] == '/';
    mc_str full = mc_strf(arena, "%.*s%.*s", absolute ? 0 : (int)directory, from.data, MC_FMT(path));
    mc_buf text = {0};
    bool good = mc_file_read(full.data, MAX_TEXT_BYTES, &text, NULL) == MOEC_OK;
    if (good) {
        *out_name = full;
        *out_text = mc_str_dup(arena, mc_buf_view(&text));
    }
    mc_buf_fini(&text);
    return good;
}

moec_status
mc_unit_read_config(mc_unit *u, const char *path, mc_str *out, mc_fault *fault)
{
    mc_str full = mc_file_is_directory(path) ? mc_strf(u->arena, "%s/config.json", path) : mc_str_of(path);
    mc_buf text = {0};
    moec_status status = mc_file_read(full.data, MAX_CONFIG_BYTES, &text, fault);
    *out = status == MOEC_OK ? mc_str_dup(u->arena, mc_buf_view(&text)) : MC_STR("");
    mc_buf_fini(&text);
    return status;
}

static mc_str *
strings(mc_unit *u, const char *const *items, size_t n)
{
    mc_str *out = MC_NEW_N(u->arena, mc_str, n + 2);
    for (size_t i = 0; i < n; i++) out[i] = mc_str_of(items[i]);
    return out;
}

static mc_str *
settings_of(mc_unit *u, const moec_compile_options *o, size_t *n)
{
    mc_str *all = strings(u, o->settings, o->n_settings);
    *n = o->n_settings;
    if (o->mesh) all[(*n)++] = mc_strf(u->arena, "place.mesh=%s", o->mesh);
    return all;
}

/* Training keeps parameters in f32, whatever the text stores them in, unless a setting says otherwise. */
static void
add_training_settings(mc_unit *u, mc_elab_options *options)
{
    static const char storage[] = "precision.storage=";
    mc_str *all = MC_NEW_N(u->arena, mc_str, options->n_settings + 1);
    for (size_t i = 0; i < options->n_settings; i++) {
        if (mc_str_starts(options->settings[i], storage)) return;
        all[i + 1] = options->settings[i];
    }
    all[0] = MC_STR("precision.storage=f32");
    options->settings = all;
    options->n_settings++;
}

static bool
elaborate(mc_unit *u)
{
    const moec_compile_options *o = u->options;
    if (mc_str_ends(mc_source_of(&u->sources, (mc_span){u->file, 0, 0})->name, ".moir")) {
        u->module = mc_module_read(&u->sources, u->file, &u->diags);
        return u->module != NULL && u->diags.n_errors == 0;
    }
    mc_elab_options options = {.model = mc_str_of(o->model),
                               .defines = strings(u, o->defines, o->n_defines),
                               .n_defines = o->n_defines,
                               .weights_map = mc_str_of(o->map),
                               .load = load_use};
    options.settings = settings_of(u, o, &options.n_settings);
    if (o->train) add_training_settings(u, &options);
    mc_fault fault = {0};
    if (o->config && mc_unit_read_config(u, o->config, &options.config, &fault) != MOEC_OK)
        return mc_error(&u->diags, (mc_span){0}, MC_E0909, "%s", fault.text);
    bool good = mc_elaborate(u->arena, &u->sources, u->file, &options, &u->diags, &u->elab);
    u->module = u->elab.module;
    return good && u->module;
}

bool
mc_unit_elaborate(mc_unit *u)
{
    const char *frozen = u->options->train ? u->options->frozen : NULL;
    if (!elaborate(u)) return false;
    if (frozen && *frozen) mc_module_set_meta(u->module, MC_STR("train.frozen"), mc_str_of(frozen));
    return true;
}

bool
mc_unit_passes(mc_unit *u, const mc_pass_options *pass_options)
{
    mc_pass_options options = pass_options ? *pass_options : mc_pass_options_default();
    static const char *const pipelines[2][2] = {{"@default", "@train"}, {"@gpu", "@gpu-train"}};
    mc_str pipeline = mc_str_of(u->options->pipeline ? u->options->pipeline : pipelines[u->gpu][u->options->train]);
    mc_pass_setting *settings = MC_NEW_N(u->arena, mc_pass_setting, options.n_settings + 1);
    for (size_t i = 0; i < options.n_settings; i++) settings[i] = options.settings[i];
    if (u->options->train && u->options->recompute)
        settings[options.n_settings++] = (mc_pass_setting){MC_STR("recompute"), 1};
    options.settings = settings;
    return mc_run_pipeline(u->module, pipeline, &options, &u->diags);
}

/* ---- the summary line ---- */

typedef struct fused_kind {
    mc_opcode opcode;
    const char *what;
} fused_kind;

static const fused_kind fused_kinds[] = {{MC_OP_MOE_FFN_UP, "expert gate+up+activation"},
                                         {MC_OP_MOE_FFN_DOWN, "expert down+combine"},
                                         {MC_OP_GATED_LINEAR, "dense gate+up+activation"}};

static size_t
count_ops(const mc_module *m, mc_opcode opcode)
{
    size_t n = 0;
    MC_FOR_FUNCS(f, m) MC_FOR_OPS(op, f) n += op->opcode == opcode;
    return n;
}

static size_t
count_residuals(const mc_module *m)
{
    size_t n = 0;
    MC_FOR_FUNCS(f, m) MC_FOR_OPS(op, f) n += op->opcode == MC_OP_LINEAR && mc_operand_named(op, "residual");
    return n;
}

mc_str
mc_unit_summary(mc_unit *u)
{
    mc_buf text = {0};
    mc_buf_puts(&text, "fused:");
    size_t total = 0;
    for (size_t i = 0; i < sizeof fused_kinds / sizeof *fused_kinds; i++) {
        size_t n = count_ops(u->module, fused_kinds[i].opcode);
        if (n) mc_buf_printf(&text, "%s %zu x %s", total ? "," : "", n, fused_kinds[i].what);
        total += n;
    }
    size_t residuals = count_residuals(u->module);
    if (residuals) mc_buf_printf(&text, "%s %zu x linear+residual", total ? "," : "", residuals);
    if (!total && !residuals) mc_buf_puts(&text, " nothing");
    for (size_t i = 0; i < u->diags.list.n; i++) {
        if (u->diags.list.items[i].code != MC_R0503) continue;
        mc_buf_puts(&text, "; ");
        mc_buf_str(&text, u->diags.list.items[i].text);
    }
    mc_str summary = mc_str_dup(u->arena, mc_buf_view(&text));
    mc_buf_fini(&text);
    return summary;
}

mc_str
mc_unit_name(const mc_unit *u)
{
    const mc_func *model = mc_module_model(u->module);
    mc_str name = u->options->name ? mc_str_of(u->options->name) : model ? model->name : MC_STR("model");
    mc_str safe = mc_str_dup(u->arena, name); /* it becomes part of a symbol and of C identifiers */
    char *p = (char *)(uintptr_t)safe.data;
    for (size_t i = 0; i < safe.len; i++)
        if (!isalnum((unsigned char)p[i])) p[i] = '_';
    return safe;
}

moec_status
mc_unit_status(const mc_unit *u)
{
    if (!u->diags.n_errors) return MOEC_OK;
    for (size_t i = 0; i < u->diags.list.n; i++) {
        mc_code code = u->diags.list.items[i].code;
        if (code == MC_E0504) return MOEC_ERR_INTERNAL;
        if (code == MC_E0601 || code == MC_E0602 || code == MC_E0605) return MOEC_ERR_UNSUPPORTED;
        if (code == MC_E0603) return MOEC_ERR_INTERNAL;
        if (code == MC_E0909) return MOEC_ERR_IO;
    }
    return MOEC_ERR_SYNTAX;
}

void
mc_unit_deliver(mc_unit *u)
{
    mc_buf rendered = {0}, json = {0};
    for (; u->n_delivered < u->diags.list.n; u->n_delivered++) {
        const mc_diagnostic *d = &u->diags.list.items[u->n_delivered];
        mc_severity severity = mc_code_severity(d->code);
        if (!u->options->on_diagnostic || (severity == MC_SEVERITY_REMARK && !u->options->remarks)) continue;
        mc_buf_clear(&rendered);
        mc_buf_clear(&json);
        mc_diag_render(&u->diags, d, u->options->color, &rendered);
        mc_diag_render_json(&u->diags, d, &json);
        mc_location at = d->span.file ? mc_locate(&u->sources, d->span) : (mc_location){0};
        moec_diagnostic out = {.severity = severity == MC_SEVERITY_ERROR     ? MOEC_SEVERITY_ERROR
                                           : severity == MC_SEVERITY_WARNING ? MOEC_SEVERITY_WARNING
                                                                             : MOEC_SEVERITY_REMARK,
                               .code = mc_code_name(d->code),
                               .message = d->text.data,
                               .file = at.file.data ? at.file.data : "",
                               .line = at.line,
                               .column = at.column,
                               .rendered = rendered.data,
                               .json = json.data};
        u->options->on_diagnostic(u->options->user, &out);
    }
    mc_buf_fini(&rendered);
    mc_buf_fini(&json);
}
