/* What lives across steps. A step never changes what an earlier one kept: it makes a successor, and the run, when it
 * has succeeded, makes all successors current at once. So a failed step can simply be tried again. */
#include "codegen/ref/ref.h"

#include <stdlib.h>

typedef struct kept {
    mc_ref_tensor now, next; /* data NULL: none; heap memory of the state */
} kept;

struct mc_ref_state {
    mc_arena *arena; /* keys and entries */
    mc_map entries;  /* path of call sites and op -> kept */
    int64_t past;
};

mc_ref_state *
mc_ref_state_create(void)
{
    mc_arena *arena = mc_arena_create();
    mc_ref_state *s = MC_NEW(arena, mc_ref_state);
    s->arena = arena;
    mc_map_init(&s->entries, arena);
    return s;
}

void
mc_ref_state_destroy(mc_ref_state *state)
{
    if (!state) return;
    for (size_t i = 0; i < state->entries.n; i++) {
        kept *e = state->entries.entries[i].value;
        free(e->now.data);
        free(e->next.data);
    }
    mc_arena_destroy(state->arena);
}

int64_t
mc_ref_state_past(const mc_ref_state *state)
{
    return state->past;
}

void
mc_ref_state_commit(mc_ref_state *state, int64_t n_new)
{
    for (size_t i = 0; i < state->entries.n; i++) {
        kept *e = state->entries.entries[i].value;
        if (!e->next.data) continue;
        free(e->now.data);
        e->now = e->next;
        e->next = (mc_ref_tensor){0};
    }
    state->past += n_new;
}

void
mc_ref_state_rollback(mc_ref_state *state)
{
    for (size_t i = 0; i < state->entries.n; i++) {
        kept *e = state->entries.entries[i].value;
        free(e->next.data);
        e->next = (mc_ref_tensor){0};
    }
}

static kept *
entry_of(mc_ref_op *k)
{
    mc_ref_state *s = k->ref->state;
    mc_str key = mc_strf(k->arena, "%.*s/%u", MC_FMT(k->frame->site), k->op->id);
    kept *e = mc_map_get(&s->entries, key);
    if (e) return e;
    e = MC_NEW(s->arena, kept);
    mc_map_set(&s->entries, mc_str_dup(s->arena, key), e);
    return e;
}

const mc_ref_tensor *
mc_ref_kept(mc_ref_op *k)
{
    kept *e = entry_of(k);
    return e->now.data ? &e->now : NULL;
}

mc_ref_tensor *
mc_ref_keep(mc_ref_op *k, moec_dtype dtype, const int64_t *dims, int rank)
{
    if (k->frame->expert >= 0) {
        mc_ref_fail(k, MC_E0407, "an expert body cannot keep state");
        return NULL;
    }
    kept *e = entry_of(k);
    free(e->next.data);
    e->next = (mc_ref_tensor){0};
    mc_ref_tensor made;
    if (mc_ref_tensor_init(&made, dtype, dims, rank, NULL))
        made.data = calloc((size_t)made.n + 1, moec_dtype_bytes(dtype)); /* never of size 0: NULL means failure */
    if (!made.data) {
        mc_ref_fail(k, MC_E0319, "no memory for the state of '%s'", mc_op_info_of(k->op)->text);
        return NULL;
    }
    e->next = made;
    return &e->next;
}
