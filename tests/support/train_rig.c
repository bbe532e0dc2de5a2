#include "tests/support/train_rig.h"

#include "tests/support/poisoned.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the model --------------------------------------------------------------------------------------------------- */

static void
print_diagnostic(void *user, const moec_diagnostic *d)
{
    (void)user;
    fputs(d->rendered, stderr);
}

size_t
mc_rig_param_bytes(const mc_rig *rig, size_t param)
{
    const moec_param_info *p = &rig->params[param];
    size_t n = moec_dtype_bytes(p->dtype);
    for (uint32_t d = 0; d < p->rank; d++) n *= (size_t)p->dims[d];
    return n;
}

static void
fill_param(mc_rig *rig, size_t i, mc_ref_weight_fn *weight, void *weight_user)
{
    const moec_param_info *p = &rig->params[i];
    mc_ref_weight_request request = {
        .path = mc_str_of(p->path), .role = mc_str_of(p->role), .dtype = p->dtype, .rank = (int)p->rank};
    memcpy(request.dims, p->dims, p->rank * sizeof *p->dims);
    mc_ref_tensor t;
    ck_assert_msg(weight(weight_user, &request, &t), "no parameter %s", p->path);
    ck_assert_int_eq(t.dtype, p->dtype);
    ck_assert_uint_eq((size_t)t.n * moec_dtype_bytes(t.dtype), mc_rig_param_bytes(rig, i));
    rig->values[i] = mc_poisoned((int64_t)mc_rig_param_bytes(rig, i));
    memcpy(rig->values[i], t.data, mc_rig_param_bytes(rig, i));
}

void
mc_rig_open(mc_rig *rig, const char *name, const char *text, const moec_compile_options *options,
            mc_ref_weight_fn *weight, void *weight_user)
{
    moec_compile_options o = options ? *options : (moec_compile_options){.cache = ""};
    moec_error error = {{0}};
    *rig = (mc_rig){.arena = mc_arena_create()};
    o.train = true;
    if (!o.on_diagnostic) o.on_diagnostic = print_diagnostic;
    ck_assert_int_eq(moec_compile_text(name, text, strlen(text), &o, &rig->compiled), MOEC_OK);
    ck_assert_msg(moec_compiled_load(rig->compiled, &rig->model, &error) == MOEC_OK, "%s", error.text);
    ck_assert(moec_model_is_trainable(rig->model));
    rig->n_params = moec_train_n_params(rig->model);
    rig->params = MC_NEW_N(rig->arena, moec_param_info, rig->n_params + 1);
    rig->values = MC_NEW_N(rig->arena, void *, rig->n_params + 1);
    mc_synthetic_init(&rig->synthetic, rig->arena, 5);
    for (size_t i = 0; i < rig->n_params; i++) {
        ck_assert_int_eq(moec_train_param(rig->model, i, &rig->params[i]), MOEC_OK);
        fill_param(rig, i, weight ? weight : mc_ref_synthetic_weight, weight ? weight_user : &rig->synthetic);
    }
    ck_assert_int_eq(moec_train_param(rig->model, rig->n_params, &rig->params[rig->n_params]), MOEC_ERR_ARGUMENT);
}

void
mc_rig_close(mc_rig *rig)
{
    for (size_t i = 0; i < rig->n_params; i++) mc_poisoned_free(rig->values[i]);
    moec_compiled_destroy(rig->compiled);
    mc_arena_destroy(rig->arena);
}

size_t
mc_rig_param(const mc_rig *rig, const char *path)
{
    for (size_t i = 0; i < rig->n_params; i++)
        if (strcmp(rig->params[i].path, path) == 0) return i;
    ck_abort_msg("no parameter %s", path);
}

size_t
mc_rig_output(const mc_rig *rig, const char *name)
{
    moec_tensor_info info;
    for (size_t i = 0; moec_model_output(rig->model, i, &info) == MOEC_OK; i++)
        if (strcmp(info.name, name) == 0) return i;
    ck_abort_msg("no output %s", name);
}

/* ---- a step ------------------------------------------------------------------------------------------------------ */

static size_t
n_elements(const moec_tensor *t)
{
    size_t n = 1;
    for (uint32_t d = 0; d < t->rank; d++) n *= (size_t)t->dims[d];
    return n;
}

static void
allocate(moec_tensor *t)
{
    t->n_bytes = n_elements(t) * moec_dtype_bytes(t->dtype);
    t->data = mc_poisoned((int64_t)t->n_bytes);
}

static void
draw(moec_tensor *t, int64_t limit, uint64_t seed)
{
    for (size_t i = 0; i < n_elements(t); i++) {
        if (t->dtype == MOEC_F32)
            ((float *)t->data)[i] = (float)mc_noise_normal(seed, (int64_t)i);
        else
            ((int32_t *)t->data)[i] = (int32_t)(mc_noise_uniform(seed, (int64_t)i) * (double)(limit ? limit : 1));
    }
}

/* "[B, S, 3]": the symbols' values. */
static int64_t
dim_of(const moec_tensor_info *info, uint32_t axis, const moec_limit *dims, size_t n_dims)
{
    const char *at = info->shape + 1;
    for (uint32_t i = 0; i < axis; i++) at = strchr(at, ' ') + 1;
    for (size_t i = 0; i < n_dims; i++)
        if (strlen(dims[i].name) == strcspn(at, ",]") && strncmp(at, dims[i].name, strlen(dims[i].name)) == 0)
            return dims[i].max;
    ck_abort_msg("dimension %u of %s %s is not given", axis, info->name, info->shape);
}

static void
open_inputs(mc_rig_step *s, const moec_limit *dims, size_t n_dims, uint64_t seed)
{
    s->call.inputs = s->inputs;
    s->call.n_inputs = moec_model_n_inputs(s->rig->model);
    s->call.input_grads = s->input_grads;
    s->call.n_input_grads = s->call.n_inputs;
    ck_assert_uint_le(s->call.n_inputs, MC_RIG_MAX);
    for (size_t i = 0; i < s->call.n_inputs; i++) {
        moec_tensor_info info;
        moec_tensor *t = &s->inputs[i];
        ck_assert_int_eq(moec_model_input(s->rig->model, i, &info), MOEC_OK);
        *t = (moec_tensor){.dtype = info.dtype, .rank = info.rank};
        for (uint32_t d = 0; d < info.rank; d++)
            t->dims[d] = info.dims[d] >= 0 ? info.dims[d] : dim_of(&info, d, dims, n_dims);
        s->input_grads[i] = *t;
        allocate(t);
        draw(t, info.limit, seed * 64 + 32 + i);
        if (moec_train_input_has_gradient(s->rig->model, i)) allocate(&s->input_grads[i]);
    }
}

/* A first forward that wants nothing fills the shapes in. */
static void
open_outputs(mc_rig_step *s, uint64_t seed)
{
    moec_error error = {{0}};
    uint64_t n = 0;
    s->call.outputs = s->outputs;
    s->call.n_outputs = moec_model_n_outputs(s->rig->model);
    s->call.cotangents = s->cotangents;
    s->call.n_cotangents = s->call.n_outputs;
    ck_assert_uint_le(s->call.n_outputs, MC_RIG_MAX);
    ck_assert_msg(moec_train_forward(s->rig->model, &s->call, &error) == MOEC_OK, "%s", error.text);
    for (size_t i = 0; i < s->call.n_outputs; i++) {
        s->cotangents[i] = s->outputs[i];
        if (moec_train_output_has_gradient(s->rig->model, i)) {
            allocate(&s->cotangents[i]);
            draw(&s->cotangents[i], 0, seed * 64 + n++);
        }
        allocate(&s->outputs[i]);
    }
}

void
mc_rig_step_open(mc_rig_step *s, const mc_rig *rig, const moec_limit *dims, size_t n_dims, uint32_t n_threads,
                 uint64_t seed)
{
    moec_error error = {{0}};
    *s = (mc_rig_step){.rig = rig};
    if (n_threads) ck_assert_msg(moec_threads_create(n_threads, &s->threads, &error) == MOEC_OK, "%s", error.text);
    ck_assert_msg(moec_train_query(rig->model, dims, n_dims, n_threads, &s->sizes, &error) == MOEC_OK, "%s",
                  error.text);
    s->call = (moec_train_call){.threads = s->threads,
                                .params = rig->values,
                                .saved = mc_poisoned((int64_t)s->sizes.saved_bytes),
                                .saved_bytes = s->sizes.saved_bytes,
                                .workspace = mc_poisoned((int64_t)s->sizes.workspace_bytes),
                                .workspace_bytes = s->sizes.workspace_bytes};
    open_inputs(s, dims, n_dims, seed);
    open_outputs(s, seed);
    s->grads = calloc(rig->n_params + 1, sizeof *s->grads);
    for (size_t i = 0; i < rig->n_params; i++)
        if (rig->params[i].has_gradient) s->grads[i] = mc_poisoned((int64_t)mc_rig_param_bytes(rig, i));
    mc_rig_zero(s);
    s->call.param_grads = s->grads;
}

void
mc_rig_step_close(mc_rig_step *s)
{
    for (size_t i = 0; i < s->call.n_inputs; i++) {
        mc_poisoned_free(s->inputs[i].data);
        mc_poisoned_free(s->input_grads[i].data);
    }
    for (size_t i = 0; i < s->call.n_outputs; i++) {
        mc_poisoned_free(s->outputs[i].data);
        mc_poisoned_free(s->cotangents[i].data);
    }
    for (size_t i = 0; i < s->rig->n_params; i++) mc_poisoned_free(s->grads[i]);
    free(s->grads);
    mc_poisoned_free(s->call.saved);
    mc_poisoned_free(s->call.workspace);
    moec_threads_destroy(s->threads);
}

void
mc_rig_zero(mc_rig_step *s)
{
    for (size_t i = 0; i < s->rig->n_params; i++)
        if (s->grads[i]) memset(s->grads[i], 0, mc_rig_param_bytes(s->rig, i));
}

static void
poison(const moec_tensor *t)
{
    if (t->data) memset(t->data, MC_POISON, t->n_bytes);
}

void
mc_rig_forward(mc_rig_step *s)
{
    moec_error error = {{0}};
    if (s->call.saved) memset(s->call.saved, MC_POISON, s->call.saved_bytes);
    memset(s->call.workspace, MC_POISON, s->call.workspace_bytes);
    for (size_t i = 0; i < s->call.n_outputs; i++) poison(&s->outputs[i]);
    ck_assert_msg(moec_train_forward(s->rig->model, &s->call, &error) == MOEC_OK, "%s", error.text);
}

void
mc_rig_backward(mc_rig_step *s)
{
    moec_error error = {{0}};
    memset(s->call.workspace, MC_POISON, s->call.workspace_bytes);
    for (size_t i = 0; i < s->call.n_input_grads; i++) poison(&s->input_grads[i]);
    ck_assert_msg(moec_train_backward(s->rig->model, &s->call, &error) == MOEC_OK, "%s", error.text);
}

void
mc_rig_collect(const mc_rig_step *s, mc_buf *out)
{
    for (size_t i = 0; i < s->call.n_outputs; i++) mc_buf_write(out, s->outputs[i].data, s->outputs[i].n_bytes);
    for (size_t i = 0; i < s->call.n_inputs; i++)
        if (s->input_grads[i].data) mc_buf_write(out, s->input_grads[i].data, s->input_grads[i].n_bytes);
    for (size_t i = 0; i < s->rig->n_params; i++)
        if (s->grads[i]) mc_buf_write(out, s->grads[i], mc_rig_param_bytes(s->rig, i));
}

double
mc_rig_error(const void *got, const mc_ref_tensor *want)
{
    const float *a = got;
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < want->n; i++) {
        double b = mc_ref_tensor_get(want, i), d = (double)a[i] - b;
        difference += d * d;
        norm += b * b;
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}
