/* include/moec/compiler.h: text -> cache, or front end -> passes -> code, and what one can do with the object.
 * The pipeline of the whole compiler is compile_fresh(). */
#include "moec/compiler.h"

#include "driver/backend.h"
#include "driver/build_id.h"
#include "driver/code_cache.h"
#include "driver/compiled.h"
#include "driver/link.h"
#include "driver/unit.h"
#include "frontend/elaborate.h"
#include "runtime/base/cache_dir.h"

#include <stdlib.h>
#include <string.h>

struct moec_compiled {
    mc_product code;
    bool from_cache, train;
    mc_loaded *loaded;
    const moec_abi_model *abi;
    moec_model *model, *gpu_model;
};

/* ---- the cache's key: everything that decides the object's bytes ---- */

static void
add_string(mc_cache_key *key, const char *s)
{
    mc_cache_key_add(key, s ? s : "", s ? strlen(s) + 1 : 0);
}

static void
add_strings(mc_cache_key *key, const char *const *items, size_t n)
{
    mc_cache_key_add(key, &n, sizeof n);
    for (size_t i = 0; i < n; i++) add_string(key, items[i]);
}

/* A text that uses other files is compiled afresh: what they say is not in the key. The word may also stand in a
 * comment; that costs a compile, no more. */
static bool
uses_files(mc_str text)
{
    for (size_t i = 0; i + 4 < text.len; i++)
        if ((i == 0 || text.data[i - 1] == '\n' || text.data[i - 1] == ' ' || text.data[i - 1] == ';') &&
            memcmp(text.data + i, "use", 3) == 0 &&
            (text.data[i + 3] == ' ' || text.data[i + 3] == '\t' || text.data[i + 3] == '"'))
            return true;
    return false;
}

static bool
cache_key(mc_unit *u, const mc_backend_target *target, mc_cache_key *key)
{
    const moec_compile_options *o = u->options;
    mc_str text = mc_source_of(&u->sources, (mc_span){u->file, 0, 0})->text;
    if (uses_files(text)) return false;
    *key = (mc_cache_key){{0, 0}};
    mc_str build = mc_build_id();
    add_string(key, MOEC_VERSION_STRING);
    mc_cache_key_add(key, build.data, build.len);
    add_string(key, target->compiler);
    add_string(key, target->key);
    mc_str prelude = mc_prelude_text();
    mc_cache_key_add(key, prelude.data, prelude.len);
    mc_cache_key_add(key, text.data, text.len);
    add_string(key, o->model);
    add_string(key, o->name);
    add_string(key, o->map);
    add_string(key, o->pipeline);
    add_string(key, o->train ? o->recompute ? "recompute" : "save" : "");
    add_string(key, o->train ? o->frozen : "");
    add_string(key, o->mesh);
    add_strings(key, o->defines, o->n_defines);
    add_strings(key, o->settings, o->n_settings);
    if (!o->config) return true;
    mc_str config;
    bool good = mc_unit_read_config(u, o->config, &config, NULL) == MOEC_OK;
    mc_cache_key_add(key, config.data, config.len);
    return good;
}

/* ---- compiling ---- */

static bool
compile_fresh(mc_unit *u, const mc_backend_target *target, mc_product *out)
{
    mc_pass_options passes = mc_pass_options_default();
    mc_pass_setting nr = {MC_STR("nr"), target->nr};
    passes.settings = &nr;
    passes.n_settings = 1;
    if (!mc_unit_elaborate(u) || !mc_unit_passes(u, &passes)) return false;
    mc_buf_str(&out->name, mc_unit_name(u));
    mc_buf_str(&out->summary, mc_unit_summary(u));
    return mc_backend_emit(u, target, MC_CODE_OBJECT, &out->object);
}

/* Where there is none to be had (no home directory) nothing is said; a directory that cannot be trusted or written is.
 */
static bool
find_cache(mc_unit *u, mc_buf *directory)
{
    mc_fault fault = {0};
    moec_status status = mc_cache_directory(u->options->cache, "code", directory, &fault);
    if (status != MOEC_OK && status != MOEC_ERR_NOT_FOUND)
        mc_warning(&u->diags, (mc_span){0}, MC_W0913, "compiled code is not kept: %s", fault.text);
    return status == MOEC_OK;
}

static bool
compile_cpu(mc_unit *u, moec_compiled *c)
{
    mc_backend_target target;
    mc_buf directory = {0};
    mc_cache_key key;
    bool good = mc_backend_find(u, &target);
    bool keep =
        good && !(u->options->cache && !*u->options->cache) && cache_key(u, &target, &key) && find_cache(u, &directory);
    if (keep) c->from_cache = mc_code_cache_get(directory.data, key, &c->code);
    if (good && !c->from_cache) {
        good = compile_fresh(u, &target, &c->code);
        if (good && keep) mc_code_cache_put(directory.data, key, &c->code);
    }
    mc_buf_fini(&directory);
    return good;
}

/* Of an elaborated unit. */
static bool
compile_gpu(mc_unit *u, mc_product *out)
{
    if (!mc_unit_passes(u, NULL)) return false;
    mc_buf_clear(&out->name);
    mc_buf_clear(&out->summary);
    mc_buf_str(&out->name, mc_unit_name(u));
    mc_buf_str(&out->summary, mc_unit_summary(u));
    return mc_backend_gpu_emit(u, &out->image);
}

static moec_status
status_of(const mc_unit *u, bool good)
{
    if (good) return MOEC_OK;
    return mc_unit_status(u) == MOEC_OK ? MOEC_ERR_INTERNAL : mc_unit_status(u);
}

static moec_status
compile_gpu_beside(const mc_unit *cpu, mc_product *out)
{
    mc_unit u;
    moec_status status = status_of(&u, mc_unit_begin_gpu(&u, cpu) && compile_gpu(&u, out));
    mc_unit_deliver(&u);
    mc_unit_fini(&u);
    return status;
}

static moec_status
compile(mc_unit *u, moec_compiled **out)
{
    const moec_compile_options *o = u->options;
    moec_compiled *c = calloc(1, sizeof *c);
    if (!c) return MOEC_ERR_MEMORY;
    c->train = o->train;
    u->gpu = !mc_unit_wants_cpu(o);
    moec_status status = status_of(u, u->gpu ? mc_unit_elaborate(u) && compile_gpu(u, &c->code) : compile_cpu(u, c));
    if (status == MOEC_OK && o->gpu && !u->gpu) status = compile_gpu_beside(u, &c->code);
    if (status == MOEC_OK)
        *out = c;
    else
        moec_compiled_destroy(c);
    return status;
}

static const moec_compile_options defaults;

moec_status
moec_compile_text(const char *name, const char *text, size_t n_bytes, const moec_compile_options *options,
                  moec_compiled **out_compiled)
{
    *out_compiled = NULL;
    if (!name || !text) return MOEC_ERR_ARGUMENT;
    mc_unit u;
    mc_unit_init(&u, options ? options : &defaults);
    mc_unit_text(&u, name, text, n_bytes);
    moec_status status = compile(&u, out_compiled);
    mc_unit_deliver(&u);
    mc_unit_fini(&u);
    return status;
}

moec_status
moec_compile_file(const char *path, const moec_compile_options *options, moec_compiled **out_compiled)
{
    *out_compiled = NULL;
    if (!path) return MOEC_ERR_ARGUMENT;
    mc_unit u;
    mc_unit_init(&u, options ? options : &defaults);
    moec_status status = mc_unit_load(&u, path) ? compile(&u, out_compiled) : MOEC_ERR_IO;
    mc_unit_deliver(&u);
    mc_unit_fini(&u);
    return status;
}

void
moec_compiled_destroy(moec_compiled *c)
{
    if (!c) return;
    moec_model_destroy(c->model);
    moec_model_destroy(c->gpu_model);
    mc_backend_unload(c->loaded);
    mc_product_fini(&c->code);
    free(c);
}

/* ---- what was made ---- */

static const void *
bytes_of(const mc_buf *b, size_t *out_n_bytes)
{
    *out_n_bytes = b->len;
    return b->len ? b->data : NULL;
}

const void *
moec_compiled_object(const moec_compiled *c, size_t *out_n_bytes)
{
    return bytes_of(&c->code.object, out_n_bytes);
}

const void *
moec_compiled_image(const moec_compiled *c, size_t *out_n_bytes)
{
    return bytes_of(&c->code.image, out_n_bytes);
}

const char *
moec_compiled_name(const moec_compiled *c)
{
    return c->code.name.data;
}

const char *
moec_compiled_summary(const moec_compiled *c)
{
    return c->code.summary.data;
}

bool
moec_compiled_from_cache(const moec_compiled *c)
{
    return c->from_cache;
}

static moec_status
fail(moec_error *error, moec_status status, const char *text)
{
    if (!error) return status;
    size_t n = strlen(text) < sizeof error->text ? strlen(text) : sizeof error->text - 1;
    memcpy(error->text, text, n);
    error->text[n] = 0;
    return status;
}

moec_status
mc_compiled_abi(moec_compiled *c, const moec_abi_model **out_abi, mc_fault *fault)
{
    moec_status status = MOEC_OK;
    if (!c->abi)
        status =
            mc_backend_load(c->code.object.data, c->code.object.len, c->code.name.data, &c->loaded, &c->abi, fault);
    *out_abi = c->abi;
    return status;
}

moec_status
moec_compiled_load(moec_compiled *c, moec_model **out_model, moec_error *error)
{
    mc_fault fault = {0};
    const moec_abi_model *abi;
    *out_model = NULL;
    if (!c->code.object.len) return moec_compiled_load_gpu(c, out_model, error);
    moec_status status = mc_compiled_abi(c, &abi, &fault);
    if (status != MOEC_OK) return fail(error, status, fault.text);
    if (!c->model) status = moec_model_from_abi(abi, &c->model, error);
    if (status != MOEC_OK) return status;
    *out_model = c->model;
    return fail(error, MOEC_OK, "");
}

moec_status
moec_compiled_load_gpu(moec_compiled *c, moec_model **out_model, moec_error *error)
{
    *out_model = NULL;
    if (!c->code.image.len)
        return fail(error, MOEC_ERR_UNSUPPORTED, "it was compiled without code for GPUs: set `gpu` in the options");
    if (!c->gpu_model) {
        moec_status status = moec_model_from_image(c->code.image.data, c->code.image.len, &c->gpu_model, error);
        if (status != MOEC_OK) return status;
    }
    *out_model = c->gpu_model;
    return fail(error, MOEC_OK, "");
}

moec_status
moec_compiled_write(const moec_compiled *c, moec_artefact kind, const char *path, moec_error *error)
{
    mc_fault fault = {0};
    mc_link_input code = {mc_buf_view(&c->code.object), mc_buf_view(&c->code.image), c->code.name.data};
    if (kind == MOEC_EXECUTABLE && c->train)
        return fail(error, MOEC_ERR_UNSUPPORTED,
                    "a model compiled for training makes no executable: its parameters are the caller's. Write a "
                    "library, or compile it without `train`");
    moec_status status = mc_link(&code, kind, path, &fault);
    return fail(error, status, fault.text);
}
