/* The frame of a generated module: random numbers, the helpers that blocks are made of, and the model function. Values
 * are kept near 1 by norms and squashing functions, so that a difference between two executions means something. */
#include "tests/support/gen_impl.h"

#include <string.h>

int
mc_gen_pick(mc_gen *g, int n)
{
    g->state += 1;
    return (int)(mc_noise_uniform(g->state, 0) * n);
}

bool
mc_gen_chance(mc_gen *g, int percent)
{
    return mc_gen_pick(g, 100) < percent;
}

mc_op *
mc_gen_op(mc_gen_func *f, mc_opcode opcode, mc_value *const *operands, int n, const mc_named_attr *attrs, int n_attrs)
{
    if (n && !operands[0]) return NULL;
    return mc_build(&f->b, opcode, operands, n, attrs, n_attrs);
}

mc_value *
mc_gen_make(mc_gen_func *f, mc_opcode opcode, mc_value *const *operands, int n, const mc_named_attr *attrs, int n_attrs)
{
    mc_op *op = mc_gen_op(f, opcode, operands, n, attrs, n_attrs);
    return op ? mc_result(op, 0) : NULL;
}

mc_value *
mc_gen_unary(mc_gen_func *f, mc_opcode opcode, mc_value *x)
{
    return mc_gen_make(f, opcode, GEN_OPERANDS(x), GEN_NONE);
}

mc_value *
mc_gen_binary(mc_gen_func *f, mc_opcode opcode, mc_value *a, mc_value *b)
{
    return b ? mc_gen_make(f, opcode, GEN_OPERANDS(a, b), GEN_NONE) : NULL;
}

int64_t
mc_gen_width(const mc_value *x)
{
    return mc_type_last(x->type).mul;
}

mc_dim
mc_gen_sym(mc_gen *g, const char *name)
{
    return mc_dim_sym(mc_symbol_get(g->module, mc_str_of(name)));
}

mc_value *
mc_gen_weight(mc_gen_func *f, const char *role, moec_dtype dtype, int64_t experts, const int64_t *dims, int rank)
{
    mc_gen *g = f->gen;
    mc_dim d[MC_MAX_RANK];
    if (g->f32 && dtype != MOEC_I32) dtype = MOEC_F32;
    for (int i = 0; i < rank; i++) d[i] = mc_dim_const(dims[i]);
    mc_str path = mc_strf(g->module->arena, "%s%d.weight", role, g->n_names++);
    return mc_build_weight(&f->b, path, false, role, experts, mc_type_get(g->module, dtype, d, rank));
}

static moec_dtype
any_storage(mc_gen *g)
{
    static const moec_dtype dtypes[] = {MOEC_F32, MOEC_BF16, MOEC_F16, MOEC_F8E4M3};
    return g->f32 ? MOEC_F32 : dtypes[mc_gen_pick(g, 4)];
}

mc_value *
mc_gen_linear(mc_gen_func *f, mc_value *x, int64_t n, const char *role, int64_t experts)
{
    if (!x) return NULL;
    mc_gen *g = f->gen;
    moec_dtype dtype = any_storage(g);
    mc_value *w = mc_gen_weight(f, role, dtype, experts, (int64_t[]){n, mc_gen_width(x)}, 2);
    mc_value *bias = NULL, *scale = NULL, *residual = NULL;
    if (mc_gen_chance(g, 30)) bias = mc_gen_weight(f, role, MOEC_F32, experts, &n, 1);
    if (dtype == MOEC_F8E4M3) {
        int64_t dims[2] = {(n + 127) / 128, (mc_gen_width(x) + 127) / 128};
        scale = mc_gen_weight(f, role, MOEC_F32, experts, dims, 2);
    }
    if (n == mc_gen_width(x) && !experts && mc_gen_chance(g, 30)) residual = x;
    return mc_gen_make(f, MC_OP_LINEAR, GEN_OPERANDS(x, w, bias, scale, residual), GEN_NONE);
}

mc_value *
mc_gen_reshape(mc_gen_func *f, mc_value *x, const int64_t *tail, int n_tail)
{
    if (!x) return NULL;
    mc_dim dims[MC_MAX_RANK];
    int rank = 0;
    for (int i = 0; i < x->type->rank && !mc_dim_is_const(x->type->dims[i]); i++) dims[rank++] = x->type->dims[i];
    for (int i = 0; i < n_tail; i++) dims[rank++] = mc_dim_const(tail[i]);
    return mc_build_reshape(&f->b, x, dims, rank);
}

mc_gen_func
mc_gen_func_begin(mc_gen *g, const char *kind)
{
    mc_gen_func f = {.gen = g};
    f.func = mc_func_create(g->module, mc_strf(g->module->arena, "%s%d", kind, g->n_names++), (mc_span){0});
    f.b = mc_builder_at_end(f.func, g->diags);
    return f;
}

/* A stream's width is kept small by a linear now and then, its values by a norm. */
static mc_value *
settle(mc_gen_func *f, mc_value *x)
{
    if (!x) return NULL;
    if (mc_gen_width(x) > 24 || mc_gen_width(x) < 4) x = mc_gen_linear(f, x, 8, "dense", 0);
    return mc_gen_make(f, MC_OP_RMSNORM, GEN_OPERANDS(x), GEN_ATTRS(MC_A_FLOAT("eps", 1e-3)));
}

/* What training watches: a loss beside the results. */
static bool
watch(mc_gen_func *f, mc_value *x)
{
    if (!f->gen->trainable || !mc_gen_chance(f->gen, 30)) return true;
    mc_value *z = mc_gen_unary(f, MC_OP_MOE_Z_LOSS, x);
    return mc_gen_op(f, MC_OP_OUTPUT, GEN_OPERANDS(z),
                     GEN_ATTRS(MC_A_STR("name", MC_STR("z")), MC_A_BOOL("sum", true))) != NULL;
}

static bool
build_model(mc_gen *g, int n_blocks)
{
    mc_gen_func f = mc_gen_func_begin(g, "model");
    f.func->is_model = true;
    int64_t n = 4 + 2 * mc_gen_pick(g, 4);
    mc_dim dims[3] = {mc_gen_sym(g, "B"), mc_gen_sym(g, "S"), mc_dim_const(n)};
    f.tokens = mc_func_add_formal(f.func, mc_type_get(g->module, MOEC_I32, dims, 2), MC_STR("tokens"));
    mc_value *x = mc_func_add_formal(f.func, mc_type_get(g->module, MOEC_F32, dims, 3), MC_STR("x")), *middle = NULL;
    for (int i = 0; i < n_blocks && x; i++) {
        x = settle(&f, mc_gen_any_block(&f, x, false));
        if (i == n_blocks / 2) middle = x;
        if (x && !watch(&f, x)) return false;
    }
    if (!x) return false;
    mc_value *results[2] = {x, middle};
    bool two = middle && middle != x;
    return mc_build_return(&f.b, results, two ? 2 : 1) != NULL;
}

mc_module *
mc_gen_module(const mc_gen_options *options, mc_diags *diags)
{
    mc_gen g = {.module = mc_module_create(NULL),
                .diags = diags,
                .by_token = options->by_token,
                .continuous = options->continuous || options->trainable,
                .trainable = options->trainable,
                .f32 = options->f32 || options->trainable};
    g.state = options->seed * 0x10001;
    static const char *const symbols[] = {"B", "S", "C", "R"};
    for (int i = 0; i < 4; i++) mc_symbol_get(g.module, mc_str_of(symbols[i]));
    if (!build_model(&g, options->n_blocks)) {
        if (!diags->n_errors) mc_error(diags, (mc_span){0}, MC_E0504, "the generator made nothing");
        mc_module_destroy(g.module);
        return NULL;
    }
    mc_module_sort_funcs(g.module);
    return g.module;
}

void
mc_gen_inputs(const mc_module *m, uint64_t seed, int64_t B, int64_t S, mc_arena *arena,
              mc_ref_tensor inputs[MC_GEN_INPUTS])
{
    int64_t n = mc_gen_width(mc_module_model(m)->formals.items[1]);
    int64_t dims[3] = {B, S, n};
    if (!mc_ref_tensor_init(&inputs[0], MOEC_I32, dims, 2, arena)) return;
    if (!mc_ref_tensor_init(&inputs[1], MOEC_F32, dims, 3, arena)) return;
    for (int64_t i = 0; i < inputs[0].n; i++) mc_ref_tensor_set(&inputs[0], i, mc_noise_uniform(seed, i) * 7);
    for (int64_t i = 0; i < inputs[1].n; i++) mc_ref_tensor_set(&inputs[1], i, mc_noise_normal(seed ^ 0xF00D, i));
}
