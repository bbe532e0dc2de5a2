/* tensors: one step of a model with plain tensors, from .npy files to .npy files. Numpy has no bf16, so floats of a
 * file are converted to the type of the input, and bf16 outputs are written as f32, which is exact. */
#include "runtime/app/app.h"
#include "runtime/base/dtype.h"
#include "runtime/npy.h"

#include <string.h>

typedef struct tensors {
    mc_npy in[MC_APP_MAX_VALUES];
    mc_pages out[MC_APP_MAX_VALUES];
    moec_tensor inputs[MC_APP_MAX_VALUES], outputs[MC_APP_MAX_VALUES];
    char in_names[MC_APP_MAX_VALUES][64], out_names[MC_APP_MAX_VALUES][64];
    const char *out_paths[MC_APP_MAX_VALUES];
    int n_in, n_out;
    int64_t n; /* of what is shared out among ranks (moec_abi_ep.rank_sym); -1: nothing is */
} tensors;

/* "name=file.npy"; "file.npy" alone when `only`, the name of the one tensor there is, is not NULL. */
static int
cut(const mc_app *app, const char *option, const char *text, const char *only, char *name, const char **path)
{
    const char *equals = strchr(text, '=');
    if (!equals && only && mc_str_ends(mc_str_of(text), ".npy") && strlen(only) < 64) {
        memcpy(name, only, strlen(only) + 1);
        *path = text;
        return MC_APP_OK;
    }
    if (!equals || equals == text || equals - text > 63 || !equals[1])
        return mc_app_usage(app, "--%s is NAME=FILE.npy, not '%s'", option, text);
    memcpy(name, text, (size_t)(equals - text));
    name[equals - text] = 0;
    *path = equals + 1;
    return MC_APP_OK;
}

/* Brings a tensor from a file to another type; only between floats, and from i64 to i32. */
static int
convert(const mc_app *app, const char *name, moec_dtype to, mc_npy *npy)
{
    moec_dtype from = npy->dtype;
    bool floats = mc_dtype_is_float(from) && mc_dtype_is_float(to), ids = from == MOEC_I64 && to == MOEC_I32;
    if (from == to || (!floats && !ids)) return MC_APP_OK; /* what does not fit, the session says */
    size_t n = npy->data.n_bytes / moec_dtype_bytes(from);
    mc_pages pages;
    mc_fault e;
    for (uint32_t i = 0; i < npy->rank; i++)
        if (!npy->dims[i]) n = 0;
    if (mc_pages_alloc(n * moec_dtype_bytes(to), name, &pages, &e) != MOEC_OK) return mc_app_fail(app, "%s", e.text);
    int code = MC_APP_OK;
    for (size_t i = 0; i < n && code == MC_APP_OK; i++) {
        double v = mc_load_elem(from, npy->data.data, i);
        if (ids && (v < INT32_MIN || v > INT32_MAX)) code = mc_app_fail(app, "%s: %.0f does not fit an i32", name, v);
        mc_store_elem(to, pages.data, i, v);
    }
    mc_pages_free(&npy->data);
    npy->data = pages;
    npy->dtype = to;
    return code;
}

static moec_dtype
input_dtype(const mc_app *app, const char *name, moec_dtype otherwise)
{
    moec_tensor_info info;
    for (size_t i = 0; i < moec_model_n_inputs(app->model); i++)
        if (moec_model_input(app->model, i, &info) == MOEC_OK && strcmp(info.name, name) == 0) return info.dtype;
    return otherwise;
}

static int
read_inputs(const mc_app *app, tensors *t)
{
    for (int i = 0; i < app->n_values[MC_APP_INPUT]; i++) {
        const char *path;
        mc_fault e;
        const char *only = app->abi->n_inputs == 1 ? app->abi->inputs[0].name : NULL;
        int code = cut(app, "input", app->values[MC_APP_INPUT][i], only, t->in_names[i], &path);
        if (code != MC_APP_OK) return code;
        t->n_in = i + 1;
        if (mc_npy_read(path, &t->in[i], &e) != MOEC_OK) return mc_app_fail(app, "%s", e.text);
        code = convert(app, t->in_names[i], input_dtype(app, t->in_names[i], t->in[i].dtype), &t->in[i]);
        if (code != MC_APP_OK) return code;
        t->inputs[i] = (moec_tensor){.name = t->in_names[i],
                                     .dtype = t->in[i].dtype,
                                     .rank = t->in[i].rank,
                                     .data = t->in[i].data.data,
                                     .n_bytes = t->in[i].data.n_bytes};
        memcpy(t->inputs[i].dims, t->in[i].dims, sizeof t->in[i].dims);
    }
    return MC_APP_OK;
}

/* ---- several ranks ---------------------------------------------------------------------------------------------- */

/* How many elements of axis 0 each thing that is shared out has, if the tensor has it there; else 0. */
static int64_t
per_share(const mc_app *app, const struct moec_abi_tensor *table, uint32_t n_tensors, const char *name)
{
    if (!app->abi->ep) return 0;
    for (uint32_t i = 0; i < n_tensors; i++) {
        const struct moec_abi_expr *e = &table[i].dims[0];
        if (strcmp(table[i].name, name) == 0 && table[i].rank && e->add == 0 && e->syms[1] == 0xFF &&
            e->syms[0] == app->abi->ep->rank_sym)
            return e->mul;
    }
    return 0;
}

/* Leaves this rank's rows of every input that is shared out. */
static int
take_share(mc_app *app, tensors *t)
{
    t->n = -1;
    for (int i = 0; i < t->n_in; i++) {
        moec_tensor *in = &t->inputs[i];
        int64_t each = per_share(app, app->abi->inputs, app->abi->n_inputs, in->name);
        if (each <= 0 || in->rank == 0) continue;
        if (in->dims[0] % each || (t->n >= 0 && in->dims[0] / each != t->n))
            return mc_app_fail(app, "input %s has %lld along axis 0, which does not fit the other inputs", in->name,
                               (long long)in->dims[0]);
        t->n = in->dims[0] / each;
        size_t row = moec_dtype_bytes(in->dtype) * (size_t)each, n = (size_t)t->n;
        for (uint32_t d = 1; d < in->rank; d++) row *= (size_t)in->dims[d];
        in->data = (unsigned char *)in->data + mc_app_first(app, n, app->rank) * row;
        in->n_bytes = mc_app_count(app, n) * row;
        in->dims[0] = (int64_t)mc_app_count(app, n) * each;
    }
    if (t->n > 0 && app->size > 1)
        app->share = (moec_limit){app->abi->syms[app->abi->ep->rank_sym].name, (int64_t)mc_app_most(app, (size_t)t->n)};
    return MC_APP_OK;
}

/* From each rank's rows of an output to all of them, on rank 0. */
static int
collect(mc_app *app, tensors *t, int i)
{
    moec_tensor *o = &t->outputs[i];
    int64_t each = per_share(app, app->abi->outputs, app->abi->n_outputs, o->name);
    if (each <= 0 || t->n < 0 || app->size == 1) return MC_APP_OK;
    size_t row = moec_dtype_bytes(o->dtype) * (size_t)each;
    for (uint32_t d = 1; d < o->rank; d++) row *= (size_t)o->dims[d];
    int code = mc_app_collect(app, (size_t)t->n, row, &t->out[i]);
    o->data = t->out[i].data;
    o->dims[0] = t->n * each;
    return code;
}

/* The greatest size of an output follows from the session; its buffer costs only what is written. */
static int
make_outputs(const mc_app *app, tensors *t)
{
    for (int i = 0; i < app->n_values[MC_APP_OUTPUT]; i++) {
        mc_fault e;
        const char *only = app->abi->n_outputs == 1 ? app->abi->outputs[0].name : NULL;
        int code = cut(app, "output", app->values[MC_APP_OUTPUT][i], only, t->out_names[i], &t->out_paths[i]);
        if (code != MC_APP_OK) return code;
        t->n_out = i + 1;
        size_t n_bytes = (size_t)moec_session_bytes(app->session);
        if (mc_pages_alloc(n_bytes, "an output", &t->out[i], &e) != MOEC_OK) return mc_app_fail(app, "%s", e.text);
        t->outputs[i] = (moec_tensor){.name = t->out_names[i], .data = t->out[i].data, .n_bytes = n_bytes};
    }
    return MC_APP_OK;
}

static int
write_output(const mc_app *app, const char *path, const moec_tensor *o)
{
    mc_fault e;
    size_t n = 1;
    for (uint32_t i = 0; i < o->rank; i++) n *= (size_t)o->dims[i];
    if (o->dtype != MOEC_BF16)
        return mc_npy_write(path, o->dtype, o->rank, o->dims, o->data, &e) == MOEC_OK ? MC_APP_OK
                                                                                      : mc_app_fail(app, "%s", e.text);
    mc_pages pages;
    if (mc_pages_alloc(n * sizeof(float), "an output", &pages, &e) != MOEC_OK) return mc_app_fail(app, "%s", e.text);
    for (size_t i = 0; i < n; i++)
        ((float *)(void *)pages.data)[i] = mc_bf16_to_f32(((const uint16_t *)(const void *)o->data)[i]);
    moec_status s = mc_npy_write(path, MOEC_F32, o->rank, o->dims, pages.data, &e);
    mc_pages_free(&pages);
    return s == MOEC_OK ? MC_APP_OK : mc_app_fail(app, "%s", e.text);
}

static int
run(mc_app *app, tensors *t)
{
    moec_session_options options = {0};
    bool route = mc_app_has(app, MC_APP_TRACE) || mc_app_has(app, MC_APP_REPLAY);
    if (!route && !mc_app_has(app, MC_APP_OUTPUT)) return mc_app_usage(app, "which output? Say --output NAME=FILE.npy");
    int code = read_inputs(app, t);
    if (code == MC_APP_OK) code = take_share(app, t);
    if (code == MC_APP_OK) code = mc_app_open(app, &options);
    if (code == MC_APP_OK) code = make_outputs(app, t);
    if (code != MC_APP_OK) return code;
    code = mc_app_run(app, t->inputs, (size_t)t->n_in, t->outputs, (size_t)t->n_out);
    for (int i = 0; i < t->n_out && code == MC_APP_OK; i++) {
        code = collect(app, t, i);
        if (code == MC_APP_OK && mc_app_speaks(app)) code = write_output(app, t->out_paths[i], &t->outputs[i]);
    }
    return code;
}

int
mc_app_tensors(mc_app *app)
{
    tensors t = {0};
    int code = run(app, &t);
    for (int i = 0; i < t.n_in; i++) mc_npy_fini(&t.in[i]);
    for (int i = 0; i < t.n_out; i++) mc_pages_free(&t.out[i]);
    return code;
}
