/* app_info: what was compiled. Needs neither weights nor the right processor. */
#include "runtime/app/app.h"

#include <string.h>

static void
print_ranks(const struct moec_abi_ep *ep)
{
    printf("ranks   %u (ep = %u, dp = %u), %u on a node, experts %s\n", ep->n_ranks * ep->n_replicas, ep->n_ranks,
           ep->n_replicas, ep->per_node, ep->round_robin ? "dealt round robin" : "in runs");
    if (ep->plan && ep->plan[0]) printf("%s%s", ep->plan, ep->plan[strlen(ep->plan) - 1] == '\n' ? "" : "\n");
}

static void
print_tensor(const char *kind, const moec_tensor_info *t)
{
    printf("%s  %s: %s%s", kind, t->name, moec_dtype_name(t->dtype), t->shape);
    if (t->limit) printf("  values 0..%lld", (long long)t->limit - 1);
    putchar('\n');
}

int
mc_app_info(mc_app *app)
{
    const struct moec_abi_model *abi = app->abi;
    const moec_model *m = app->model;
    moec_tensor_info info;
    printf("model   %s\n", moec_model_name(m));
    printf("by      %s\n", moec_model_compiler(m));
    printf("for     %s, %s, needs %s\n", moec_model_target(m), moec_model_cpu(m),
           moec_model_features(m)[0] ? moec_model_features(m) : "nothing special");
    printf("device  ");
    mc_app_print_device(app);
    for (size_t i = 0; i < moec_model_n_inputs(m); i++)
        if (moec_model_input(m, i, &info) == MOEC_OK) print_tensor("input ", &info);
    for (size_t i = 0; i < moec_model_n_outputs(m); i++)
        if (moec_model_output(m, i, &info) == MOEC_OK) print_tensor("output", &info);
    for (uint32_t i = 0; i < abi->n_syms; i++) {
        if (abi->syms[i].kind > 2) continue;
        printf("dim     %s in %lld..", abi->syms[i].name, (long long)abi->syms[i].lo);
        if (abi->syms[i].hi) printf("%lld", (long long)abi->syms[i].hi);
        printf("%s\n", abi->syms[i].kind == 2 ? "  (cached + new positions)" : "");
    }
    int64_t per_position = 0, per_sequence = 0;
    for (uint32_t i = 0; i < abi->n_states; i++)
        *(abi->states[i].kind ? &per_sequence : &per_position) += abi->states[i].bytes;
    printf("weights %u, %.1f MiB packed\n", abi->n_weights, (double)moec_model_weights_bytes(m) / (1 << 20));
    printf("state   %lld bytes a position, %lld bytes a sequence\n", (long long)per_position, (long long)per_sequence);
    printf("plan    %u functions, %u launches, %u kernels\n", abi->n_funcs, abi->n_launches, abi->n_kernels);
    printf("hash    %016llx, weights %016llx\n", (unsigned long long)abi->hash, (unsigned long long)abi->weights_hash);
    if (abi->ep) print_ranks(abi->ep);
    if (moec_model_meta(m)[0]) printf("meta    %s\n", moec_model_meta(m));
    return MC_APP_OK;
}
