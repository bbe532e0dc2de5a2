/* Rotary frequencies, in double: inv_i = theta^(-2i / dims), then the scaling rule.
 *   linear  divides every frequency by factor
 *   llama3  keeps short wavelengths, divides long ones by factor, blends between
 *   yarn    a ramp between dividing (slow channels) and keeping (fast ones), and a factor on cos and sin */
#include "ir/rope.h"

#include <assert.h>
#include <math.h>

static const double pi = 3.14159265358979323846;

int64_t
mc_rope_dims(const mc_op *rope)
{
    assert(rope->opcode == MC_OP_ROPE);
    int64_t dims = mc_attr_int(rope, "dims");
    return dims ? dims : mc_type_last(mc_operand(rope, 0)->type).mul;
}

static double
llama3(double inv, const double *args)
{
    double factor = args[0], low = args[1], high = args[2], original = args[3];
    double wavelength = 2 * pi / inv;
    if (wavelength < original / high) return inv;
    if (wavelength > original / low || low == high) return inv / factor;
    double smooth = (original / wavelength - low) / (high - low);
    return (1 - smooth) * inv / factor + smooth * inv;
}

/* The channel (as a real number) that turns `turns` times within `original` positions. */
static double
yarn_channel(double turns, double dims, double theta, double original)
{
    return dims * log(original / (turns * 2 * pi)) / (2 * log(theta));
}

static double
yarn_mscale(double factor, double scale)
{
    return factor > 1 ? 0.1 * scale * log(factor) + 1 : 1;
}

static double
yarn(double *inv, int64_t dims, double theta, const double *args)
{
    double factor = args[0], original = args[1], mscale = args[4], mscale_all = args[5];
    bool truncate = args[6] != 0;
    double low = yarn_channel(args[2], (double)dims, theta, original);
    double high = yarn_channel(args[3], (double)dims, theta, original);
    if (truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)dims - 1);
    if (low == high) high += 0.001;
    for (int64_t i = 0; i < dims / 2; i++) {
        double ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
        inv[i] = inv[i] / factor * ramp + inv[i] * (1 - ramp);
    }
    if (args[7] != 0) return args[7];
    if (mscale != 0 && mscale_all != 0) return yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all);
    return yarn_mscale(factor, 1);
}

void
mc_rope_frequencies(const mc_op *rope, double *out_inv_freq, double *out_factor)
{
    int64_t dims = mc_rope_dims(rope);
    double theta = mc_attr_float(rope, "theta");
    mc_str scaling = mc_attr_str(rope, "scaling");
    const double *args = mc_attr_get(rope, "args")->as.floats.items;
    *out_factor = 1;
    for (int64_t i = 0; i < dims / 2; i++) {
        double inv = pow(theta, -2.0 * (double)i / (double)dims);
        if (mc_str_is(scaling, "linear")) inv /= args[0];
        if (mc_str_is(scaling, "llama3")) inv = llama3(inv, args);
        out_inv_freq[i] = inv;
    }
    if (mc_str_is(scaling, "yarn")) *out_factor = yarn(out_inv_freq, dims, theta, args);
}
