/* How messages of the fake NCCL meet: a group that its stream has reached posts its sends and receives; the first of
 * each pair waits for the second, which copies. Two of different sizes, which hang or overrun in the real one, break
 * both ranks with a sentence. */
#define _GNU_SOURCE
#include "tests/gpu/fake_nccl_impl.h"

#include "runtime/base/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void
fake_nccl_break(ncclComm comm, ncclResult error, const char *format, ...)
{
    va_list args;
    if (comm->error != ncclSuccess) return;
    comm->error = error;
    va_start(args, format);
    vsnprintf(comm->text, sizeof comm->text, format, args);
    va_end(args);
    fprintf(stderr, "fake NCCL: rank %d: %s\n", comm->rank, comm->text);
}

bool
fake_is_chosen(const char *variable, int rank, unsigned number, int *out_value)
{
    const char *text = getenv(variable);
    int r = -1, value = 0;
    unsigned n = 0;
    if (!text || sscanf(text, "%d:%u:%d", &r, &n, &value) < 2) return false;
    if (out_value) *out_value = value;
    return r == rank && n == number;
}

void
fake_group_free(fake_group *g)
{
    while (g->ops) {
        fake_op *op = g->ops;
        g->ops = op->next;
        free(op);
    }
    g->comm->n_alive--;
    fake_nccl_now.groups_alive--;
    free(g);
}

/* The waiting other half. */
static fake_op **
find_half(fake_clique *c, const fake_op *op)
{
    for (fake_op **at = &c->posted; *at; at = &(*at)->next_posted)
        if ((*at)->receives != op->receives && (*at)->peer == op->group->comm->rank &&
            (*at)->group->comm->rank == op->peer)
            return at;
    return NULL;
}

static void
differ(const fake_op *a, const fake_op *b)
{
    const fake_op *in = a->receives ? a : b, *out = a->receives ? b : a;
    char text[FAKE_TEXT];
    snprintf(text, sizeof text, "rank %d: receives %zu bytes from rank %d, but that sends %zu", in->group->comm->rank,
             in->n_bytes, in->peer, out->n_bytes);
    fake_nccl_now.mismatches++;
    fake_nccl_break(in->group->comm, ncclInvalidUsage, "%s", text);
    fake_nccl_break(out->group->comm, ncclInvalidUsage, "%s", text);
}

static void
meet(fake_clique *c, fake_op *op)
{
    fake_op **at = find_half(c, op);
    if (!at) {
        fake_op **end = &c->posted;
        while (*end) end = &(*end)->next_posted;
        *end = op;
        return;
    }
    fake_op *half = *at;
    *at = half->next_posted;
    if (half->n_bytes != op->n_bytes) {
        differ(op, half); /* neither is ever done */
        return;
    }
    const fake_op *in = op->receives ? op : half, *out = op->receives ? half : op;
    memcpy(in->data, out->data, in->n_bytes);
    half->group->n_left--;
    op->group->n_left--;
    fake_nccl_now.messages++;
    fake_nccl_now.bytes += in->n_bytes;
}

static void
say_who_is_late(const fake_group *g)
{
    const ncclComm c = g->comm;
    for (const fake_op *p = c->clique->posted; p; p = p->next_posted)
        if (p->group == g)
            fake_nccl_break(c, ncclSystemError, "group %u waits for rank %d to %s %zu bytes", g->number, p->peer,
                            p->receives ? "send" : "receive", p->n_bytes);
}

/* Under the lock. */
static bool
step(fake_group *g)
{
    ncclComm c = g->comm;
    if (c->gone) return true;
    double now = mc_seconds();
    int code = 0;
    if (g->since == 0) g->since = now;
    if (fake_is_chosen("MOEC_FAKE_NCCL_ASYNC", c->rank, g->number, &code))
        fake_nccl_break(c, code, "told to fail in group %u", g->number);
    if (c->error != ncclSuccess || fake_is_chosen("MOEC_FAKE_NCCL_HANG", c->rank, g->number, NULL)) return false;
    if (now - g->since < 1e-3 * fake_nccl_number("MOEC_FAKE_NCCL_DELAY", 0)) return false;
    if (!g->posted) {
        g->posted = true;
        for (fake_op *op = g->ops; op; op = op->next) meet(c->clique, op);
    }
    if (g->n_left && now - g->since > fake_nccl_number("MOEC_FAKE_NCCL_DEADLINE", 20)) say_who_is_late(g);
    return g->n_left == 0;
}

bool
fake_group_done(void *argument)
{
    fake_group *g = argument;
    fake_nccl_lock();
    bool done = step(g);
    if (done) {
        ncclComm c = g->comm;
        fake_group_free(g);
        if (c->gone && !c->n_alive) free(c);
    }
    fake_nccl_unlock();
    return done;
}
