/* comm_walk: see comm_walk.h. Arguments of launches: runtime/abi.h, "several ranks". */
#include "runtime/comm_walk.h"

#include "runtime/ep/ep.h"
#include "runtime/ranks.h"

#include <stdlib.h>
#include <string.h>

/* What one step of a rank can need at most; the same on all ranks, or they would wait for each other in vain. */
typedef struct demands {
    int64_t tokens, assignments, rows, received, row_bytes, experts;
    uint64_t hash;
} demands;

struct mc_comm_walk {
    const moec_abi_model *abi;
    moec_comm *comm, *own_comm; /* own: of one rank that brought none */
    mc_ep *ep;
    uint32_t *experts_of, *replicas_of; /* ranks that share the experts with this one; that hold the same */
    uint32_t *world;
    mc_ep_group all, replicas;
    int32_t *slots; /* which expert is where, of a round_robin layout; NULL: contiguous */
    uint64_t step;
    demands made_for;
};

/* ---- creation ---------------------------------------------------------------------------------------------------- */

static int64_t
greatest(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static demands
demands_of(const moec_abi_model *abi, const int64_t *exprs)
{
    demands d = {.hash = abi->hash};
    for (uint32_t i = 0; i < abi->n_launches; i++) {
        const moec_abi_launch *l = &abi->launches[i];
        const int64_t *v = exprs + l->first_int;
        if (l->kind != MOEC_LAUNCH_COMM) continue;
        if (l->target == MOEC_COMM_ROUTE) {
            d.experts = greatest(d.experts, v[1]);
            d.tokens = greatest(d.tokens, v[3]);
            d.assignments = greatest(d.assignments, v[4]);
            d.rows = greatest(d.rows, exprs[abi->syms[v[5]].bound]);
            d.received = greatest(d.received, exprs[abi->syms[v[6]].bound]);
        } else if (l->target >= MOEC_COMM_SEND && l->target <= MOEC_COMM_REDUCE) {
            d.row_bytes = greatest(d.row_bytes, v[1] * (int64_t)moec_dtype_bytes((moec_dtype)v[2]));
        }
    }
    return d;
}

static moec_status
agree(mc_comm_walk *w, const demands *own, mc_fault *error)
{
    uint32_t size = moec_comm_size(w->comm);
    demands *mine = malloc(size * sizeof *mine), *theirs = malloc(size * sizeof *theirs);
    moec_status s = mine && theirs ? MOEC_OK : mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    for (uint32_t i = 0; s == MOEC_OK && i < size; i++) mine[i] = *own;
    if (s == MOEC_OK)
        s = mc_comm_records(w->comm, "the model and its greatest sizes", size, w->world, mine, theirs, sizeof *mine,
                            error);
    for (uint32_t i = 0; s == MOEC_OK && i < size; i++)
        if (memcmp(&theirs[i], own, sizeof *own))
            s = mc_fail(error, MOEC_ERR_MISMATCH,
                        "rank %u takes steps of up to %lld tokens, rank %u of %lld: give all ranks the same limits",
                        moec_comm_rank(w->comm), (long long)own->tokens, i, (long long)theirs[i].tokens);
    free(mine);
    free(theirs);
    return s;
}

static bool
make_groups(mc_comm_walk *w)
{
    const moec_abi_ep *ep = w->abi->ep;
    uint32_t rank = moec_comm_rank(w->comm), number = rank % ep->n_ranks, replica = rank / ep->n_ranks;
    uint32_t size = ep->n_ranks * ep->n_replicas;
    w->experts_of = malloc(ep->n_ranks * sizeof *w->experts_of);
    w->replicas_of = malloc(ep->n_replicas * sizeof *w->replicas_of);
    w->world = malloc(size * sizeof *w->world);
    if (!w->experts_of || !w->replicas_of || !w->world) return false;
    for (uint32_t i = 0; i < ep->n_ranks; i++) w->experts_of[i] = replica * ep->n_ranks + i;
    for (uint32_t i = 0; i < ep->n_replicas; i++) w->replicas_of[i] = i * ep->n_ranks + number;
    for (uint32_t i = 0; i < size; i++) w->world[i] = i;
    w->all = (mc_ep_group){w->world, size, rank};
    w->replicas = (mc_ep_group){w->replicas_of, ep->n_replicas, replica};
    return true;
}

static moec_status
create(mc_comm_walk *w, const int64_t *exprs, mc_fault *error)
{
    const moec_abi_ep *ep = w->abi->ep;
    demands d = w->made_for = demands_of(w->abi, exprs);
    if (!w->comm) {
        moec_error why;
        moec_comm_options alone = {.backend = "local"};
        moec_status opened = moec_comm_open(&alone, &w->own_comm, &why);
        if (opened != MOEC_OK) return mc_fail(error, opened, "%s", why.text);
        w->comm = w->own_comm;
    }
    if (!make_groups(w)) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    if (ep->round_robin && !(w->slots = malloc((size_t)greatest(d.experts, 1) * sizeof *w->slots)))
        return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    mc_comm_identify(w->comm, w->abi->hash, 0);
    moec_status s = agree(w, &d, error);
    mc_ep_options o = {.comm = w->comm,
                       .ranks = w->experts_of,
                       .n_ranks = ep->n_ranks,
                       .me = moec_comm_rank(w->comm) % ep->n_ranks,
                       .per_node = ep->per_node,
                       .max_tokens = d.tokens,
                       .max_assignments = d.assignments,
                       .max_rows = d.rows,
                       .max_received = d.received,
                       .max_row_bytes = d.row_bytes};
    return s == MOEC_OK ? mc_ep_create(&o, &w->ep, error) : s;
}

moec_status
mc_comm_walk_create(const moec_abi_model *abi, moec_comm *comm, const int64_t *exprs, mc_comm_walk **out,
                    mc_fault *error)
{
    uint32_t number;
    moec_status s = mc_ranks_check(abi, comm, &number, error);
    if (s != MOEC_OK) return s;
    mc_comm_walk *w = calloc(1, sizeof *w);
    if (!w) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    w->abi = abi;
    w->comm = comm;
    s = create(w, exprs, error);
    if (s == MOEC_OK)
        *out = w;
    else
        mc_comm_walk_destroy(w);
    return s;
}

static void
end_attached(void *walk)
{
    mc_comm_walk_destroy(walk);
}

moec_status
mc_comm_walk_attached(const moec_abi_model *abi, moec_comm *comm, const int64_t *exprs, mc_comm_walk **out,
                      mc_fault *error)
{
    if (!comm) return mc_fail(error, MOEC_ERR_ARGUMENT, "%s is planned for ranks: give the call a comm", abi->name);
    mc_comm_walk *w = mc_comm_attached(comm);
    demands now = demands_of(abi, exprs);
    const demands *had = w ? &w->made_for : NULL;
    bool fits = w && w->abi == abi && had->tokens >= now.tokens && had->rows >= now.rows &&
                had->received >= now.received && had->assignments >= now.assignments;
    *out = w;
    if (fits) return MOEC_OK;
    moec_status s = mc_comm_walk_create(abi, comm, exprs, out, error);
    if (s == MOEC_OK) mc_comm_attach(comm, *out, end_attached);
    return s;
}

void
mc_comm_walk_destroy(mc_comm_walk *w)
{
    if (!w) return;
    mc_ep_destroy(w->ep);
    moec_comm_close(w->own_comm);
    free(w->experts_of);
    free(w->replicas_of);
    free(w->world);
    free(w->slots);
    free(w);
}

size_t
mc_comm_walk_bytes(const mc_comm_walk *w)
{
    return w->ep ? mc_ep_bytes(w->ep) : 0;
}

void
mc_comm_walk_step(mc_comm_walk *w)
{
    mc_comm_identify(w->comm, w->abi->hash, 0); /* sessions of several models may share the group */
    mc_comm_at_step(w->comm, w->step++);
}

void
mc_comm_walk_progress(mc_comm_walk *w)
{
    mc_ep_progress(w->ep);
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

static mc_ep_lists
lists_at(void *const *ptr)
{
    return (mc_ep_lists){ptr[0], ptr[1], ptr[2], ptr[3], ptr[4], ptr[5]};
}

static const int32_t *
slots_of(mc_comm_walk *w, int64_t n_experts, int64_t share)
{
    int64_t ranks = w->abi->ep->n_ranks;
    for (int64_t g = 0; w->slots && g < ranks; g++)
        for (int64_t s = 0; s < share && g * share + s < n_experts; s++)
            w->slots[g * share + s] = (int32_t)(s * ranks + g);
    return w->slots;
}

static moec_status
route(mc_comm_walk *w, const moec_kernel_args *a, int64_t *syms, mc_fault *error)
{
    mc_ep_lists lists = lists_at(a->ptr + 3);
    const int32_t *slots = a->ptr[2] ? a->ptr[2] : slots_of(w, a->i[1], a->i[2]);
    return mc_ep_route(w->ep, (mc_ep_way)a->i[0], slots, a->i[1], a->i[2], a->ptr[0], a->ptr[1], a->i[3], &lists,
                       &syms[a->i[5]], &syms[a->i[6]], error);
}

static moec_status
move(mc_comm_walk *w, moec_comm_op op, const moec_kernel_args *a, mc_fault *error)
{
    mc_ep_lists lists = lists_at(a->ptr + 1);
    mc_ep_way way = (mc_ep_way)a->i[0];
    mc_ep_row row = {a->i[1], (moec_dtype)a->i[2], (moec_dtype)a->i[3]};
    const void *x = a->ptr[0];
    void *out = a->ptr[7];
    switch (op) {
    case MOEC_COMM_SEND: return mc_ep_send_begin(w->ep, way, &lists, row, x, out, error);
    case MOEC_COMM_SEND_ROWS: return mc_ep_send_rows_begin(w->ep, &lists, row, x, out, error);
    case MOEC_COMM_RETURN_ROWS: return mc_ep_return_rows_begin(w->ep, &lists, row, x, out, error);
    default: return mc_ep_reduce_begin(w->ep, way, &lists, row, x, a->i[4], out, error);
    }
}

static moec_status
gather(mc_comm_walk *w, const moec_kernel_args *a, int64_t *syms, const int64_t *bounds, mc_fault *error)
{
    int64_t begin = 0, all = a->i[2];
    moec_status s =
        mc_ep_gather(w->comm, &w->all, a->ptr[0], a->i[0], a->i[1], bounds[all], a->ptr[1], &syms[all], &begin, error);
    int32_t at = (int32_t)begin;
    if (s == MOEC_OK) memcpy(a->ptr[2], &at, sizeof at);
    return s;
}

static void
own(const moec_kernel_args *a)
{
    int32_t begin;
    memcpy(&begin, a->ptr[1], sizeof begin);
    memcpy(a->ptr[2], (const unsigned char *)a->ptr[0] + begin * a->i[1], (size_t)(a->i[0] * a->i[1]));
}

moec_status
mc_comm_walk_launch(mc_comm_walk *w, const moec_abi_launch *launch, const moec_kernel_args *a, int64_t *syms,
                    const int64_t *bounds, bool *out_changed, mc_fault *error)
{
    *out_changed = false;
    switch ((moec_comm_op)launch->target) {
    case MOEC_COMM_ROUTE: *out_changed = true; return route(w, a, syms, error);
    case MOEC_COMM_SEND:
    case MOEC_COMM_SEND_ROWS:
    case MOEC_COMM_RETURN_ROWS:
    case MOEC_COMM_REDUCE: return move(w, (moec_comm_op)launch->target, a, error);
    case MOEC_COMM_WAIT: return mc_ep_wait(w->ep, error);
    case MOEC_COMM_GATHER: *out_changed = true; return gather(w, a, syms, bounds, error);
    case MOEC_COMM_OWN: own(a); return MOEC_OK;
    case MOEC_COMM_MERGE:
        *out_changed = true;
        return mc_ep_merge(w->comm, &w->replicas, a->i[0], a->ptr[1], a->ptr[0], a->i[1], bounds[a->i[2]], a->ptr[2],
                           a->ptr[3], &syms[a->i[2]], error);
    }
    return mc_fail(error, MOEC_ERR_INTERNAL, "launch of an unknown kind between ranks");
}
