/* Sharing out: see rows.h. A row of up to 1024 elements is a warp's, or a part of a warp's when a few threads can hold
 * it at once; a longer one is a block's, with about two vectors for each thread. */
#include "codegen/gpu/rows.h"

#include <ctype.h>
#include <string.h>

enum { MAX_WIDTH = 8, VECTOR_BYTES = 16, WARP = 32, WARP_ELEMENTS = 1024, WARP_BLOCK = 256, MAX_LANES = 1024 };

uint32_t
mc_gpu_width(mc_dim n, size_t least_bytes)
{
    int64_t width = VECTOR_BYTES / (int64_t)least_bytes;
    if (width > MAX_WIDTH) width = MAX_WIDTH;
    while (n.mul % width || n.add % width) width /= 2;
    return (uint32_t)width;
}

size_t
mc_gpu_least_bytes(const mc_op *op)
{
    size_t least = sizeof(float);
    double value;
    for (int i = 0; i < op->n_operands + op->n_results; i++) {
        const mc_value *v = i < op->n_operands ? mc_operand(op, i) : mc_result(op, i - op->n_operands);
        if (!v || mc_plan_is_const(v, &value)) continue;
        size_t bytes = moec_dtype_bytes(v->type->dtype);
        if (bytes < least) least = bytes;
    }
    return least;
}

bool
mc_gpu_is_float(moec_dtype dtype)
{
    return dtype == MOEC_F32 || dtype == MOEC_BF16 || dtype == MOEC_F16;
}

bool
mc_gpu_need_floats(mc_plan *p, const mc_op *op)
{
    for (int i = 0; i < op->n_operands + op->n_results; i++) {
        const mc_value *v = i < op->n_operands ? mc_operand(op, i) : mc_result(op, i - op->n_operands);
        if (v && !mc_gpu_is_float(v->type->dtype))
            return mc_plan_refuse(p, "one of its tensors is %s; f32, bf16 and f16 are what it can be",
                                  moec_dtype_name(v->type->dtype));
    }
    return true;
}

mc_plan_kernel *
mc_gpu_kernel_of(mc_plan *p, const mc_gpu_code *code)
{
    char *name = mc_arena_alloc(p->arena, code->call.len + 1);
    size_t n = 0;
    for (size_t i = 0; i < code->call.len && code->call.data[i] != '('; i++) {
        char c = code->call.data[i];
        if (isalnum((unsigned char)c) || c == '_') {
            name[n++] = c;
        } else if (n && name[n - 1] != '_') {
            name[n++] = '_';
        }
    }
    while (n && name[n - 1] == '_') n--;
    bool is_template = memchr(code->call.data, '<', code->call.len) != NULL; /* else the function has this name */
    return mc_gpu_kernel_get(p, code, "%.*s%s", (int)n, name, is_template ? "" : "_kernel");
}

static uint32_t
lanes_for(int64_t d, uint32_t width)
{
    int64_t vectors = (d + width - 1) / width;
    if (d == 0) return WARP_BLOCK; /* known at run time only */
    if (vectors <= WARP || d <= WARP_ELEMENTS) {
        uint32_t lanes = 1;
        while (lanes < WARP && lanes < vectors) lanes *= 2;
        return lanes;
    }
    int64_t lanes = (vectors / 2 + WARP - 1) / WARP * WARP;
    return (uint32_t)(lanes < MAX_LANES ? lanes : MAX_LANES);
}

void
mc_gpu_rows_launch(mc_plan *p, mc_gpu_code code, const mc_type *x, size_t least_bytes, const char *function,
                   mc_str parameters)
{
    mc_dim last = mc_type_last(x);
    int64_t d = mc_dim_is_const(last) ? last.mul + last.add : 0;
    uint32_t width = d ? mc_gpu_width(last, least_bytes) : 1, lanes = lanes_for(d, width);
    code.threads = lanes > WARP ? lanes : WARP_BLOCK;
    code.call =
        mc_strf(p->arena, "%s<span<%lld, %u, %u>, %.*s>(a);", function, (long long)d, lanes, width, MC_FMT(parameters));
    mc_gpu_grid(&code, 0, 0, code.threads / lanes);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    mc_gpu_int(p, mc_plan_rows(p, x));
    mc_gpu_int(p, last);
}
