#include "driver/train/train_init.h"

#include "driver/train/train_random.h"

#include <stdio.h>
#include <string.h>

static bool
ends_in(const char *path, const char *last)
{
    size_t n = strlen(path), k = strlen(last);
    return n >= k && strcmp(path + n - k, last) == 0 && (n == k || path[n - k - 1] == '.');
}

static const char *
default_init(const moec_param_info *info)
{
    bool is_bias = ends_in(info->path, "bias");
    if (strcmp(info->role, "norm") == 0 && !is_bias) return "ones";
    return is_bias || info->rank < 2 ? "zeros" : "normal(0.02)";
}

static void
fill(float *out, size_t n, float value)
{
    for (size_t i = 0; i < n; i++) out[i] = value;
}

moec_status
mc_train_init(const moec_param_info *info, uint64_t seed, uint64_t first, void *out, size_t n_elements, mc_fault *fault)
{
    const char *init = info->init[0] ? info->init : default_init(info);
    uint64_t stream = mc_train_stream(info->path);
    double a, b;
    char end;
    float *values = out;
    if (info->dtype != MOEC_F32)
        return mc_fail(fault, MOEC_ERR_UNSUPPORTED,
                       "%s is a table of %s, which training does not make up: give it by --weights", info->path,
                       moec_dtype_name(info->dtype));
    if (strcmp(init, "zeros") == 0) {
        fill(values, n_elements, 0);
    } else if (strcmp(init, "ones") == 0) {
        fill(values, n_elements, 1);
    } else if (sscanf(init, "normal(%lf%c", &a, &end) == 2 && end == ')') {
        for (size_t i = 0; i < n_elements; i++) values[i] = (float)(a * mc_train_normal(seed, stream, first + i));
    } else if (sscanf(init, "uniform(%lf, %lf%c", &a, &b, &end) == 3 && end == ')') {
        for (size_t i = 0; i < n_elements; i++)
            values[i] = (float)(a + (b - a) * mc_train_uniform(seed, stream, first + i));
    } else {
        return mc_fail(fault, MOEC_ERR_INTERNAL, "%s: init %s means nothing", info->path, init);
    }
    return MOEC_OK;
}
