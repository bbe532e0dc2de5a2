/* comm_wait: exchanges from begin to their end, and how they fail. The one idea: whatever goes wrong breaks the whole
 * comm, with one sentence that stays; the others are told, and from then on nothing here waits for anybody. */
#include "runtime/base/clock.h"
#include "runtime/comm/comm_impl.h"

#include <assert.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const double longest_rest = 0.05; /* for backends that miss a word of another rank while they rest */

/* ---- breaking ------------------------------------------------------------------------------------------------- */

const char *
mc_comm_in_step(const moec_comm *c, char *text, size_t n_bytes)
{
    text[0] = 0;
    if (c->at_step) snprintf(text, n_bytes, " in step %" PRIu64, c->step);
    return text;
}

moec_status
mc_comm_broken(const moec_comm *c, mc_fault *error)
{
    return mc_fail(error, c->status, "%s", c->fault.text);
}

moec_status
mc_comm_break(moec_comm *c, moec_status status, const char *format, ...)
{
    if (c->status != MOEC_OK) return c->status;
    va_list args;
    va_start(args, format);
    vsnprintf(c->fault.text, sizeof c->fault.text, format, args);
    va_end(args);
    c->status = status;
    c->backend->abort(c->state, c->fault.text);
    return status;
}

/* Another rank said it first: that is the cause. What it was at it says itself, unless it went without a word. */
static bool
heard(moec_comm *c, const char *what)
{
    char why[MC_FAULT_BYTES - 64], step[40];
    uint32_t rank = 0;
    if (!c->backend->aborted || !c->backend->aborted(c->state, &rank, why, sizeof why)) return false;
    if (why[0])
        mc_comm_break(c, MOEC_ERR_COMM, "rank %u gave up: %s", rank, why);
    else
        mc_comm_break(c, MOEC_ERR_COMM, "%s: rank %u%s: rank %u gave up: it left in the middle of an exchange", what,
                      c->place.rank, mc_comm_in_step(c, step, sizeof step), rank);
    return true;
}

void
mc_comm_abort(moec_comm *c, const char *why)
{
    char step[40], said[MC_FAULT_BYTES - 64];
    if (c->status != MOEC_OK) return;
    snprintf(said, sizeof said, "%s%s", why, mc_comm_in_step(c, step, sizeof step));
    c->status = MOEC_ERR_COMM;
    mc_fail(&c->fault, c->status, "rank %u gave up: %s", c->place.rank, said);
    c->backend->abort(c->state, said);
}

/* ---- exchanges ------------------------------------------------------------------------------------------------ */

/* The backend's error, with what was going on. */
static moec_status
failed(moec_comm *c, const char *what, moec_status s, const mc_fault *why)
{
    char step[40];
    if (s == MOEC_ERR_COMM && heard(c, what)) return c->status;
    return mc_comm_break(c, s, "%s: rank %u%s: %s", what, c->place.rank, mc_comm_in_step(c, step, sizeof step),
                         why->text);
}

static moec_status
too_late(moec_comm *c, const mc_comm_request *r)
{
    uint32_t peer = 0;
    size_t n_bytes = 0;
    char step[40];
    mc_comm_in_step(c, step, sizeof step);
    c->backend->late(c->state, (uint32_t)(r - c->requests), &peer, &n_bytes);
    if (n_bytes)
        return mc_comm_break(c, MOEC_ERR_COMM, "%s: rank %u waited %.1f s for %zu bytes from rank %u%s", r->what,
                             c->place.rank, c->deadline, n_bytes, peer, step);
    return mc_comm_break(c, MOEC_ERR_COMM, "%s: rank %u waited %.1f s for rank %u to take its bytes%s", r->what,
                         c->place.rank, c->deadline, peer, step);
}

moec_status
mc_comm_begin(moec_comm *c, const mc_exchange *x, mc_comm_request **out, mc_fault *error)
{
    *out = NULL;
    if (c->status != MOEC_OK) return mc_comm_broken(c, error);
    uint32_t index = 0;
    while (index < MC_COMM_REQUESTS && c->requests[index].busy) index++;
    if (index == MC_COMM_REQUESTS) {
        mc_comm_break(c, MOEC_ERR_INTERNAL, "%s: rank %u has %d exchanges under way already", x->what, c->place.rank,
                      MC_COMM_REQUESTS);
        return mc_comm_broken(c, error);
    }
    for (uint32_t i = 0; i < x->n_peers; i++)
        assert(x->peers[i] < c->place.size && (i == 0 || x->peers[i - 1] < x->peers[i]));
    mc_fault why = {{0}};
    moec_status s = c->backend->begin(c->state, index, x, &why);
    if (s != MOEC_OK) {
        failed(c, x->what, s, &why);
        return mc_comm_broken(c, error);
    }
    c->requests[index] = (mc_comm_request){.busy = true, .what = x->what};
    *out = &c->requests[index];
    return MOEC_OK;
}

/* Asks the backend once. The comm is broken when it fails. */
static void
look(moec_comm *c, mc_comm_request *r)
{
    uint32_t peer = 0;
    mc_fault why = {{0}};
    moec_status s = c->backend->test(c->state, (uint32_t)(r - c->requests), &r->done, &peer, &why);
    if (s != MOEC_OK) failed(c, r->what, s, &why);
}

bool
mc_comm_progress(moec_comm *c)
{
    bool quiet = true;
    for (uint32_t i = 0; i < MC_COMM_REQUESTS && c->status == MOEC_OK; i++) {
        mc_comm_request *r = &c->requests[i];
        if (r->busy && !r->done) look(c, r);
        quiet = quiet && (!r->busy || r->done);
    }
    return quiet || c->status != MOEC_OK;
}

moec_status
mc_comm_wait(moec_comm *c, mc_comm_request *r, mc_fault *error)
{
    double end = mc_seconds() + c->deadline;
    while (c->status == MOEC_OK && !r->done) {
        double now = mc_seconds(); /* before the look: one that was stopped itself finds what came meanwhile */
        look(c, r);
        if (r->done || c->status != MOEC_OK || heard(c, r->what)) break;
        if (now >= end) {
            too_late(c, r);
        } else if (c->backend->rest) {
            double left = end - now;
            c->backend->rest(c->state, left < longest_rest ? left : longest_rest);
        } else {
            sched_yield();
        }
    }
    r->busy = false;
    return c->status == MOEC_OK ? MOEC_OK : mc_comm_broken(c, error);
}

moec_status
mc_comm_exchange(moec_comm *c, const mc_exchange *x, mc_fault *error)
{
    mc_comm_request *r;
    moec_status s = mc_comm_begin(c, x, &r, error);
    return s == MOEC_OK ? mc_comm_wait(c, r, error) : s;
}
