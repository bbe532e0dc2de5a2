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
    for (size_t i = 0; i < code->call.len; i++) {
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

/* ---- sizes that grow ----------------------------------------------------------------------------------------------
 */

/* d for one cached position; false when that is not d divided by their number. */
static bool
without_history(const mc_plan *p, mc_dim *d)
{
    int n = 0;
    for (int i = 0; i < d->n_syms; i++)
        if (p->syms.items[d->syms[i]].kind != 2) d->syms[n++] = d->syms[i];
    bool once = n + 1 == d->n_syms && d->add == 0;
    for (int i = n; i < d->n_syms; i++) d->syms[i] = 0;
    d->n_syms = (uint8_t)n;
    return once;
}

void
mc_gpu_sizes_add(mc_plan *p, mc_gpu_sizes *s, mc_dim d)
{
    if (s->n == MOEC_ABI_MAX_INTS) {
        mc_plan_refuse(p, "it needs more than %d sizes", (int)MOEC_ABI_MAX_INTS);
        return;
    }
    if (mc_gpu_grows(p, d)) {
        s->grows |= 1u << s->n;
        if (!without_history(p, &d)) mc_plan_refuse(p, "a size is no multiple of the number of cached positions");
    }
    s->items[s->n++] = d;
}

void
mc_gpu_sizes_call(mc_plan *p, const mc_gpu_sizes *s, mc_gpu_code *code)
{
    enum { BLOCKS = 1024 };
    if (!s->grows) return;
    mc_str head = mc_str_slice(code->call, 0, code->call.len - strlen("(a);"));
    code->call = mc_strf(p->arena, "mc_args g = grown<%u, %d>(a); %.*s(g);", s->grows, s->n, MC_FMT(head));
    code->grid[0] = (moec_abi_grid_axis){.from = MOEC_ABI_GRID_ONE, .div = 1, .add = BLOCKS};
}

void
mc_gpu_sizes_push(mc_plan *p, const mc_gpu_sizes *s)
{
    for (int i = 0; i < s->n; i++) mc_plan_int(p, s->items[i]);
    if (!s->grows) return;
    for (size_t i = 0; i < p->syms.n; i++) {
        if (p->syms.items[i].kind != 1) continue;
        mc_plan_int(p, mc_dim_sym((int)i));
        return;
    }
    mc_plan_refuse(p, "nothing says how many positions are new");
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

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
