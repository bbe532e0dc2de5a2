/* A finished plan as the descriptor that the runtime reads, and the hashes that say whether two fit together. */
#include "codegen/plan/plan.h"
#include "ir/print.h"
#include "runtime/base/hash.h"

#include <string.h>

static uint64_t
hash_text(const char *s, uint64_t seed)
{
    return mc_hash64(s ? s : "", s ? strlen(s) + 1 : 0, seed);
}

uint64_t
mc_plan_hash_weights(const mc_plan *p, mc_str rules)
{
    uint64_t h = mc_hash64(rules.data, rules.len, 0);
    for (size_t i = 0; i < p->weights.n; i++) {
        const moec_abi_weight *w = &p->weights.items[i];
        h = hash_text(w->path, h);
        h = hash_text(w->path2, h);
        h = hash_text(w->scale_of, h);
        const uint32_t numbers[] = {w->dtype, w->layout, w->nr, w->rank};
        h = mc_hash64(numbers, sizeof numbers, h);
        h = mc_hash64(w->dims, sizeof w->dims, h);
        h = mc_hash64(w->block, sizeof w->block, h);
        if (w->experts) h = mc_hash64(&w->experts, sizeof w->experts, h);
    }
    return h;
}

uint64_t
mc_plan_hash(const mc_module *plan, uint64_t seed)
{
    mc_buf buf = {0};
    mc_module_print(plan, &buf);
    uint64_t h = mc_hash64(buf.data, buf.len, seed);
    mc_buf_fini(&buf);
    return h;
}

moec_abi_model
mc_plan_abi(const mc_plan *p)
{
    return (moec_abi_model){
        .magic = MOEC_ABI_MAGIC,
        .version = MOEC_ABI_VERSION,
        .syms = p->syms.items,
        .inputs = p->inputs.items,
        .outputs = p->outputs.items,
        .weights = p->weights.items,
        .states = p->states.items,
        .funcs = p->funcs.items,
        .launches = p->launches.items,
        .slots = p->slots.items,
        .refs = p->refs.items,
        .exprs = p->exprs.items,
        .floats = p->floats.items,
        .strings = p->strings.n ? p->strings.items : "",
        .n_syms = (uint32_t)p->syms.n,
        .n_inputs = (uint32_t)p->inputs.n,
        .n_outputs = (uint32_t)p->outputs.n,
        .n_weights = (uint32_t)p->weights.n,
        .n_states = (uint32_t)p->states.n,
        .n_funcs = (uint32_t)p->funcs.n,
        .n_launches = (uint32_t)p->launches.n,
        .n_slots = (uint32_t)p->slots.n,
        .n_refs = (uint32_t)p->refs.n,
        .n_exprs = (uint32_t)p->exprs.n,
        .n_floats = (uint32_t)p->floats.n,
        .n_kernels = (uint32_t)p->kernels.n,
        .entry = p->entry,
        .batch_sym = p->batch_sym,
        .scratch_bytes = p->scratch_bytes,
        .saved = p->saved.items,
        .cotangents = p->cotangents.items,
        .input_grads = p->input_grads.items,
        .backward = p->backward,
        .backward_weight_base = p->backward_weight_base,
        .n_saved = (uint32_t)p->saved.n,
        .n_cotangents = (uint32_t)p->cotangents.n,
        .n_input_grads = (uint32_t)p->input_grads.n,
        .ep = p->ep,
    };
}
