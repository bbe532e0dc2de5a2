#include "tests/support/fake_model.h"

#include "moec/base.h"
#include "runtime/base/hash.h"

#include <string.h>

#define NONE 0xFF
#define NO_SYMS                                                                                                        \
    {                                                                                                                  \
        NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE                                                                 \
    }
#define CONST(n)                                                                                                       \
    {                                                                                                                  \
        0, n, NO_SYMS                                                                                                  \
    }
#define SYM(mul, s)                                                                                                    \
    {                                                                                                                  \
        mul, 0,                                                                                                        \
        {                                                                                                              \
            s, NONE, NONE, NONE, NONE, NONE, NONE, NONE                                                                \
        }                                                                                                              \
    }
#define SYMS2(mul, a, b)                                                                                               \
    {                                                                                                                  \
        mul, 0,                                                                                                        \
        {                                                                                                              \
            a, b, NONE, NONE, NONE, NONE, NONE, NONE                                                                   \
        }                                                                                                              \
    }
#define ZERO CONST(0)

moec_abi_expr
fake_const(int64_t n)
{
    return (moec_abi_expr)CONST(n);
}

moec_abi_expr
fake_sym(int64_t mul, uint8_t sym)
{
    return (moec_abi_expr)SYM(mul, sym);
}

moec_abi_expr
fake_syms(int64_t mul, uint8_t a, uint8_t b)
{
    return (moec_abi_expr)SYMS2(mul, a, b);
}

static const char strings[] = "matmul\0relu\0append\0count";
enum { LABEL_MATMUL = 0, LABEL_RELU = 7, LABEL_APPEND = 12, LABEL_COUNT = 19 };

#define TEXTS(model_name, map)                                                                                         \
    .magic = MOEC_ABI_MAGIC, .version = MOEC_ABI_VERSION, .name = model_name, .compiler = "by hand", .target = "any",  \
    .cpu = "any", .features = "", .hash = 1, .rules = map, .meta = "{}", .strings = strings, .backward = 0xFFFFFFFF

/* ---- layers ----------------------------------------------------------------------------------------------------- */

/* ptr: x, packed w, y. i: rows. w is 4 x 4 in two panels of [4][3]. Threads share the rows. */
static void
matmul(const moec_kernel_args *a)
{
    const float *x = a->ptr[0], *w = a->ptr[1];
    float *y = a->ptr[2];
    for (int64_t r = a->i[0] * a->thread / a->n_threads; r < a->i[0] * (a->thread + 1) / a->n_threads; r++)
        for (int64_t o = 0; o < 4; o++) {
            float sum = 0;
            for (int64_t k = 0; k < 4; k++) sum += x[r * 4 + k] * w[(o / 3 * 4 + k) * 3 + o % 3];
            y[r * 4 + o] = sum;
        }
}

/* ptr: x, y. i: elements. Reads what other threads wrote: wrong unless the barrier held. Uses its scratch. */
static void
relu(const moec_kernel_args *a)
{
    const float *x = a->ptr[0];
    float *y = a->ptr[1], *scratch = a->scratch, floor = (float)a->f[0];
    int64_t n = a->i[0];
    for (int64_t i = a->thread; i < n; i += a->n_threads) {
        scratch[0] = x[i] > floor ? x[i] : floor;
        y[i] = scratch[0];
    }
}

const moec_abi_model *
fake_layers(void)
{
    static const moec_abi_sym syms[] = {{"T", 1, 1000, 0, 0}};
    static const moec_abi_tensor inputs[] = {{"x", MOEC_F32, 2, {SYM(1, 0), CONST(4)}, 0}};
    static const moec_abi_tensor outputs[] = {{"y", MOEC_F32, 2, {SYM(1, 0), CONST(4)}, 0}};
    static const moec_abi_weight weights[] = {
        {"a.w", NULL, "dense", MOEC_F32, MOEC_ABI_PANELS, 3, 2, {4, 4}, NULL, {0, 0}, "", 0},
        {"b.w", NULL, "dense", MOEC_F32, MOEC_ABI_PANELS, 3, 2, {4, 4}, NULL, {0, 0}, "", 0}};
    static const moec_abi_func funcs[] = {{"layers", 1, 1, 0, 3, 0, 1}, {"layer", 1, 1, 3, 2, 1, 2}};
    static const moec_abi_launch launches[] = {
        {MOEC_LAUNCH_CALL, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, LABEL_MATMUL}, /* slot0 = layer(x) with a.w */
        {MOEC_LAUNCH_KERNEL, 0, 1, 2, 1, 1, 2, 0, 0, 0, 0, LABEL_RELU}, /* slot0 = relu(slot0) */
        {MOEC_LAUNCH_CALL, 0, 1, 2, 0, 0, 4, 0, 0, 1, 0, LABEL_MATMUL}, /* y = layer(slot0) with b.w */
        /* layer: slot1 = arg0 w^T; arg1 = max(slot1, -1e9), a copy through another frame slot */
        {MOEC_LAUNCH_KERNEL, 0, 0, 3, 1, 0, 6, 1, 0, 0, 0, LABEL_MATMUL},
        {MOEC_LAUNCH_KERNEL, 0, 1, 2, 1, 1, 9, 0, 1, 0, 0, LABEL_RELU}};
    /* layers has slot 0; layer has two, of which it uses the second */
    static const moec_abi_slot slots[] = {{2, 1}, {2, 1}, {3, 1}};
    static const moec_abi_ref refs[] = {
        {MOEC_ABI_ARG, 0, ZERO},       {MOEC_ABI_SLOT, 0, ZERO},   {MOEC_ABI_SLOT, 0, ZERO},
        {MOEC_ABI_SLOT, 0, ZERO},      {MOEC_ABI_SLOT, 0, ZERO},   {MOEC_ABI_ARG, 1, ZERO}, /* calls and relu above */
        {MOEC_ABI_ARG, 0, ZERO},       {MOEC_ABI_WEIGHT, 0, ZERO}, {MOEC_ABI_SLOT, 1, CONST(64)},
        {MOEC_ABI_SLOT, 1, CONST(64)}, {MOEC_ABI_ARG, 1, ZERO}};
    /* elements, rows, bytes of a [T, 4], and with room for the offset above */
    static const moec_abi_expr exprs[] = {
        SYM(4, 0), SYM(1, 0), SYM(16, 0), {16, 64, {0, NONE, NONE, NONE, NONE, NONE, NONE, NONE}}};
    static const double floats[] = {0.0, -1e9};
    static moec_kernel_fn *const kernels[] = {matmul, relu};
    static const char *const names[] = {"matmul", "relu"};
    static const moec_abi_model model = {TEXTS("layers", ""),
                                         .weights_hash = 11,
                                         .syms = syms,
                                         .inputs = inputs,
                                         .outputs = outputs,
                                         .weights = weights,
                                         .funcs = funcs,
                                         .launches = launches,
                                         .slots = slots,
                                         .refs = refs,
                                         .exprs = exprs,
                                         .floats = floats,
                                         .kernels = kernels,
                                         .kernel_names = names,
                                         .n_syms = 1,
                                         .n_inputs = 1,
                                         .n_outputs = 1,
                                         .n_weights = 2,
                                         .n_funcs = 2,
                                         .n_launches = 5,
                                         .n_slots = 3,
                                         .n_refs = 11,
                                         .n_exprs = 4,
                                         .n_floats = 2,
                                         .n_kernels = 2,
                                         .entry = 0,
                                         .batch_sym = 0xFFFFFFFF,
                                         .scratch_bytes = 64};
    return &model;
}

/* ---- counter ---------------------------------------------------------------------------------------------------- */

enum { B = 0, S = 1, C = 2, VOCAB = 256 };

/* ptr: ids, cache of i32. i: B, S. */
static void
append(const moec_kernel_args *a)
{
    const int32_t *ids = a->ptr[0];
    int32_t *cache = a->ptr[1];
    if (a->thread != 0) return;
    for (int64_t b = 0; b < a->i[0]; b++)
        for (int64_t s = 0; s < a->i[1]; s++) cache[b * a->cache_cap + a->past + s] = ids[b * a->i[1] + s];
}

/* ptr: cache, bias, logits. i: B, S, C. Threads share the vocabulary. */
static void
count(const moec_kernel_args *a)
{
    const int32_t *cache = a->ptr[0];
    const float *bias = a->ptr[1];
    float *logits = a->ptr[2];
    int64_t begin = VOCAB * a->thread / a->n_threads, end = VOCAB * (a->thread + 1) / a->n_threads;
    for (int64_t b = 0; b < a->i[0]; b++)
        for (int64_t s = 0; s < a->i[1]; s++)
            for (int64_t v = begin; v < end; v++) {
                const int32_t *history = cache + b * a->cache_cap;
                int64_t here = a->i[2] - a->i[1] + s;
                float sum = bias[v];
                for (int64_t p = 0; p <= here; p++) sum += history[p] == v ? 2.0f : 0.0f;
                if (v == (history[here] + 1) % VOCAB) sum += 0.5f;
                logits[(b * a->i[1] + s) * VOCAB + v] = sum;
            }
}

const moec_abi_model *
fake_counter(void)
{
    static const moec_abi_sym syms[] = {{"B", 1, 0, 0, 0}, {"S", 1, 64, 1, 0}, {"C", 1, 64, 2, 0}};
    static const moec_abi_tensor inputs[] = {{"tokens", MOEC_I32, 2, {SYM(1, B), SYM(1, S)}, VOCAB}};
    static const moec_abi_tensor outputs[] = {{"logits", MOEC_F32, 3, {SYM(1, B), SYM(1, S), CONST(VOCAB)}, 0}};
    static const moec_abi_weight weights[] = {
        {"bias", NULL, "head", MOEC_F32, MOEC_ABI_ROWS, 0, 1, {VOCAB}, NULL, {0, 0}, "", 0}};
    static const moec_abi_state states[] = {{"cache0", 0, 0, sizeof(int32_t)}};
    static const moec_abi_func funcs[] = {{"counter", 1, 1, 0, 2, 0, 0}};
    static const moec_abi_launch launches[] = {{MOEC_LAUNCH_KERNEL, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, LABEL_APPEND},
                                               {MOEC_LAUNCH_KERNEL, 0, 1, 3, 3, 0, 2, 0, 0, 0, 0, LABEL_COUNT}};
    static const moec_abi_ref refs[] = {{MOEC_ABI_ARG, 0, ZERO},
                                        {MOEC_ABI_STATE, 0, ZERO},
                                        {MOEC_ABI_STATE, 0, ZERO},
                                        {MOEC_ABI_WEIGHT, 0, ZERO},
                                        {MOEC_ABI_ARG, 1, ZERO}};
    static const moec_abi_expr exprs[] = {SYM(1, B), SYM(1, S), SYM(1, C)};
    static const moec_abi_slot slots[1];
    static const double floats[1];
    static moec_kernel_fn *const kernels[] = {append, count};
    static const char *const names[] = {"append", "count"};
    static const moec_abi_model model = {TEXTS("counter", "weights hf { \"bias\" <- \"model.bias\" }"),
                                         .weights_hash = 12,
                                         .syms = syms,
                                         .inputs = inputs,
                                         .outputs = outputs,
                                         .weights = weights,
                                         .states = states,
                                         .funcs = funcs,
                                         .launches = launches,
                                         .slots = slots,
                                         .refs = refs,
                                         .exprs = exprs,
                                         .floats = floats,
                                         .kernels = kernels,
                                         .kernel_names = names,
                                         .n_syms = 3,
                                         .n_inputs = 1,
                                         .n_outputs = 1,
                                         .n_weights = 1,
                                         .n_states = 1,
                                         .n_funcs = 1,
                                         .n_launches = 2,
                                         .n_refs = 5,
                                         .n_exprs = 3,
                                         .n_kernels = 2,
                                         .entry = 0,
                                         .batch_sym = B};
    return &model;
}

/* ---- weights only ------------------------------------------------------------------------------------------------ */

const moec_abi_model *
fake_weights(const moec_abi_weight *weights, size_t n, const char *rules)
{
    static const moec_abi_func funcs[] = {{"nothing", 0, 0, 0, 0, 0, 0}};
    static moec_abi_model model;
    const moec_abi_model fresh = {TEXTS("weights_only", rules), .weights = weights, .funcs = funcs,
                                  .n_weights = (uint32_t)n,     .n_funcs = 1,       .batch_sym = 0xFFFFFFFF};
    memcpy(&model, &fresh, sizeof model);
    model.weights_hash = mc_hash64(rules, strlen(rules), 0);
    for (size_t i = 0; i < n; i++) {
        const moec_abi_weight *w = &weights[i];
        model.weights_hash = mc_hash64(w->path, strlen(w->path), model.weights_hash + w->dtype);
        model.weights_hash = mc_hash64(w->dims, sizeof w->dims, model.weights_hash + w->layout);
    }
    return &model;
}
