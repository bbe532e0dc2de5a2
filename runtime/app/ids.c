/* ids: token ids from the command line, and the ids that end a sequence. */
#define _GNU_SOURCE
#include "runtime/app/app.h"
#include "runtime/npy.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CONFIG_BYTES = 16 << 20 };

int
mc_app_list(const char *text, int32_t *out, int most)
{
    int n = 0;
    for (const char *p = text; *p || n;) {
        char *end;
        errno = 0;
        long v = strtol(p, &end, 10);
        if (end == p || errno || v < INT32_MIN || v > INT32_MAX || n == most) return -1;
        out[n++] = (int32_t)v;
        if (!*end) break;
        if (*end != ',') return -1;
        p = end + 1;
    }
    return n;
}

static int
no_memory(const mc_app *app)
{
    return mc_app_fail(app, "out of memory");
}

static int
from_npy(const mc_app *app, const char *path, mc_app_ids *out)
{
    mc_npy npy;
    mc_fault e;
    if (mc_npy_read(path, &npy, &e) != MOEC_OK) return mc_app_fail(app, "%s", e.text);
    int code = MC_APP_OK;
    if ((npy.dtype != MOEC_I32 && npy.dtype != MOEC_I64) || npy.rank < 1 || npy.rank > 2 || !npy.dims[0] ||
        !npy.dims[npy.rank - 1]) {
        code = mc_app_fail(app, "%s holds no ids: it must be i32 or i64 [S] or [B, S]", path);
    } else {
        out->n_sequences = npy.rank == 2 ? (size_t)npy.dims[0] : 1;
        out->n_tokens = (size_t)npy.dims[npy.rank - 1];
        size_t n = out->n_sequences * out->n_tokens;
        out->ids = malloc(n * sizeof *out->ids);
        if (!out->ids) code = no_memory(app);
        for (size_t i = 0; i < n && code == MC_APP_OK; i++) {
            int64_t v = npy.dtype == MOEC_I32 ? ((const int32_t *)(const void *)npy.data.data)[i]
                                              : ((const int64_t *)(const void *)npy.data.data)[i];
            if (v < INT32_MIN || v > INT32_MAX) code = mc_app_fail(app, "%s: id %lld is too large", path, (long long)v);
            out->ids[i] = (int32_t)v;
        }
    }
    mc_npy_fini(&npy);
    return code;
}

static int
from_list(const mc_app *app, const char *text, mc_app_ids *out)
{
    size_t most = strlen(text) / 2 + 1, at = 0;
    char *copy = strdup(text), *save = NULL;
    out->ids = calloc(most, sizeof *out->ids);
    int code = copy && out->ids ? MC_APP_OK : no_memory(app);
    for (char *part = copy ? strtok_r(copy, ";", &save) : NULL; part && code == MC_APP_OK;
         part = strtok_r(NULL, ";", &save)) {
        int n = mc_app_list(part, out->ids + at, (int)(most - at));
        if (n <= 0)
            code = mc_app_usage(app, "--ids is a list such as 1,2,3, not '%.60s'", part);
        else if (out->n_sequences && (size_t)n != out->n_tokens)
            code = mc_app_usage(app, "--ids: sequences must be equally long");
        out->n_tokens = n > 0 ? (size_t)n : 0;
        out->n_sequences++;
        at += out->n_tokens;
    }
    if (code == MC_APP_OK && at == 0) code = mc_app_usage(app, "--ids is empty");
    free(copy);
    return code;
}

static int
from_text(const mc_app *app, const char *text, mc_app_ids *out)
{
    int64_t vocab = mc_app_vocab(app);
    if (vocab != 256)
        return mc_app_usage(
            app,
            "--prompt works for models whose tokens are bytes (256); this one has %lld and its tokenizer "
            "is not part of it: tokenize elsewhere and say --ids",
            (long long)vocab);
    out->n_sequences = 1;
    out->n_tokens = strlen(text);
    if (!out->n_tokens) return mc_app_usage(app, "--prompt is empty");
    out->ids = malloc(out->n_tokens * sizeof *out->ids);
    if (!out->ids) return no_memory(app);
    for (size_t i = 0; i < out->n_tokens; i++) out->ids[i] = (unsigned char)text[i];
    return MC_APP_OK;
}

int
mc_app_read_ids(const mc_app *app, mc_app_ids *out)
{
    const char *ids = mc_app_value(app, MC_APP_IDS), *prompt = mc_app_value(app, MC_APP_PROMPT);
    *out = (mc_app_ids){0};
    if (!mc_app_vocab(app))
        return mc_app_usage(app, "%s has no tokens; say --input NAME=FILE.npy", moec_model_name(app->model));
    if (ids && prompt) return mc_app_usage(app, "--ids or --prompt, not both");
    if (prompt) return from_text(app, prompt, out);
    return mc_str_ends(mc_str_of(ids), ".npy") ? from_npy(app, ids, out) : from_list(app, ids, out);
}

/* eos_token_id of a JSON file: a number or a list. -1: the file or the key is not there. */
static int
eos_of_file(const char *directory, const char *name, int32_t *out)
{
    char path[4200];
    mc_mapping m;
    mc_fault ignored;
    snprintf(path, sizeof path, "%.4000s/%s", directory, name);
    if (mc_file_map(path, &m, &ignored) != MOEC_OK) return -1;
    json_error_t at;
    json_t *root = m.n_bytes <= MAX_CONFIG_BYTES ? json_loadb((const char *)m.data, m.n_bytes, 0, &at) : NULL;
    const json_t *eos = json_object_get(root, "eos_token_id");
    int n = -1;
    if (json_is_integer(eos)) {
        out[0] = (int32_t)json_integer_value(eos);
        n = 1;
    } else if (json_is_array(eos)) {
        n = 0;
        for (size_t i = 0; i < json_array_size(eos) && n < MC_APP_MAX_EOS; i++)
            if (json_is_integer(json_array_get(eos, i))) out[n++] = (int32_t)json_integer_value(json_array_get(eos, i));
    }
    json_decref(root);
    mc_file_unmap(&m);
    return n;
}

size_t
mc_app_eos(const mc_app *app, int32_t *out)
{
    const char *given = mc_app_value(app, MC_APP_EOS);
    int n = 0;
    if (given)
        n = mc_app_list(given, out, MC_APP_MAX_EOS);
    else if (app->weights_path && mc_file_is_directory(app->weights_path)) {
        n = eos_of_file(app->weights_path, "generation_config.json", out);
        if (n < 0) n = eos_of_file(app->weights_path, "config.json", out);
    }
    return n > 0 ? (size_t)n : 0;
}
