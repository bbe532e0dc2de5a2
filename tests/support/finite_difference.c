/* Central differences with one step of Richardson's extrapolation, for h = 1e-3 and, where that does not agree, smaller
 * ones. Outputs are subtracted one by one before they are summed, so that little is cancelled. */
#include "tests/support/finite_difference.h"

#include "ir/op.h"
#include "runtime/base/dtype.h"
#include "runtime/base/hash.h"
#include "runtime/base/path.h"
#include "tests/support/synthetic.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double steps[] = {1e-3, 1e-4, 1e-5};
enum { N_STEPS = sizeof steps / sizeof steps[0] };
static const double good_enough = 2e-7, unsteady = 1e-5;

/* ---- running --------------------------------------------------------------------------------------------------- */

/* f32 becomes f64; narrower floats and integers stay, and have no differences. */
static bool
make_f64(mc_ref_tensor *to, const mc_ref_tensor *from, mc_arena *arena)
{
    moec_dtype dtype = from->dtype == MOEC_F32 ? MOEC_F64 : from->dtype;
    if (!mc_ref_tensor_init(to, dtype, from->dims, from->rank, arena)) return false;
    for (int64_t i = 0; i < to->n; i++) mc_ref_tensor_set(to, i, mc_ref_tensor_get(from, i));
    return true;
}

static bool
add_tensor(mc_fd *fd, mc_fd_tensor *t, mc_str name, const mc_ref_tensor *value)
{
    mc_arena *arena = fd->options.arena;
    *t = (mc_fd_tensor){.name = mc_str_dup(arena, name)};
    if (!make_f64(&t->value, value, arena)) return false;
    return !mc_dtype_is_float(value->dtype) || mc_ref_tensor_init(&t->grad, MOEC_F64, value->dims, value->rank, arena);
}

static bool
give_weight(void *user, const mc_ref_weight_request *request, mc_ref_tensor *out)
{
    mc_fd *fd = user;
    mc_fd_tensor *t = mc_map_get(&fd->by_path, request->path);
    if (!t) {
        mc_ref_tensor first;
        if (!fd->options.weight(fd->options.weight_user, request, &first)) return false;
        t = MC_NEW(fd->options.arena, mc_fd_tensor);
        if (!add_tensor(fd, t, request->path, &first)) return false;
        mc_map_set(&fd->by_path, t->name, t);
        mc_vec_push(fd->options.arena, &fd->params, t);
    }
    *out = t->value;
    return true;
}

static void
take_gradient(void *user, mc_str path, const mc_ref_tensor *d)
{
    mc_fd *fd = user;
    const mc_fd_tensor *t = mc_map_get(&fd->by_path, path);
    bool fits = t && t->grad.n == d->n && t->grad.data;
    fd->lost |= !fits;
    for (int64_t i = 0; fits && i < d->n; i++) ((double *)t->grad.data)[i] += mc_ref_tensor_get(d, i);
}

/* Choices are integers, and on which side of a corner an element lies. */
static void
note_decisions(void *user, const mc_ref_event *event)
{
    mc_fd *fd = user;
    const mc_op *op = event->op;
    bool corner = op->opcode == MC_OP_RELU || op->opcode == MC_OP_RELU2 || op->opcode == MC_OP_GLU;
    double lo = op->opcode == MC_OP_CLAMP ? mc_attr_float(op, "lo") : 0;
    double hi = op->opcode == MC_OP_CLAMP ? mc_attr_float(op, "hi") : 0;
    for (int r = 0; r < event->n_results; r++) {
        const mc_ref_tensor *t = &event->results[r];
        bool number = !mc_dtype_is_float(t->dtype) || op->opcode == MC_OP_FLOOR;
        if (op->opcode == MC_OP_WEIGHT || (!number && !corner && op->opcode != MC_OP_CLAMP)) continue;
        for (int64_t i = 0; i < t->n; i++) {
            double x = mc_ref_tensor_get(t, i), y = number ? x : corner ? x == 0 : (x == lo) + 2 * (x == hi);
            fd->decisions = mc_hash64(&y, sizeof y, fd->decisions);
        }
    }
}

static bool
run_forward(mc_fd *fd, mc_arena *arena, mc_ref_tensor *results)
{
    mc_ref_tensor *args = MC_NEW_N(fd->scratch, mc_ref_tensor, fd->inputs.n);
    for (size_t i = 0; i < fd->inputs.n; i++) args[i] = fd->inputs.items[i].value;
    fd->decisions = 0;
    return mc_ref_run_func(fd->ref, fd->forward, (mc_str){0}, NULL, args, (int)fd->inputs.n, arena, results,
                           fd->n_forward);
}

/* x..., saved..., cotangents... */
static bool
run_backward(mc_fd *fd, const mc_ref_tensor *forward)
{
    int n_saved = fd->n_forward - fd->n_outputs, n = 0;
    mc_ref_tensor *args = MC_NEW_N(fd->scratch, mc_ref_tensor, fd->inputs.n + (size_t)n_saved + fd->cotangents.n);
    mc_ref_tensor *dx = MC_NEW_N(fd->scratch, mc_ref_tensor, fd->input_grads.n);
    for (size_t i = 0; i < fd->inputs.n; i++) args[n++] = fd->inputs.items[i].value;
    for (int i = 0; i < n_saved; i++) args[n++] = forward[fd->n_outputs + i];
    for (size_t i = 0; i < fd->cotangents.n; i++) args[n++] = fd->dy[i];
    if (!mc_ref_run_func(fd->ref, fd->backward, (mc_str){0}, NULL, args, n, fd->scratch, dx, (int)fd->input_grads.n))
        return false;
    for (size_t i = 0; i < fd->input_grads.n; i++) {
        mc_fd_tensor *t = &fd->inputs.items[fd->input_grads.items[i]];
        fd->lost |= t->grad.n != dx[i].n;
        for (int64_t k = 0; k < dx[i].n && !fd->lost; k++) ((double *)t->grad.data)[k] = mc_ref_tensor_get(&dx[i], k);
    }
    return !fd->lost || mc_error(fd->options.diags, (mc_span){0}, MC_E0504, "a gradient belongs to nothing");
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

#define READ_INTS(arena, text, list)                                                                                   \
    do {                                                                                                               \
        const char *at_ = mc_str_dup(arena, text).data;                                                                \
        for (char *end_; at_ && *at_; at_ = end_) {                                                                    \
            int n_ = (int)strtol(at_, &end_, 10);                                                                      \
            if (end_ == at_) break;                                                                                    \
            mc_vec_push(arena, list, n_);                                                                              \
        }                                                                                                              \
    } while (0)

static bool
read_metas(mc_fd *fd)
{
    const mc_module *m = fd->options.module;
    mc_arena *arena = fd->options.arena;
    MC_VEC(int) outputs = {0};
    READ_INTS(arena, mc_module_meta(m, "train.outputs"), &outputs);
    READ_INTS(arena, mc_module_meta(m, "train.cotangents"), &fd->cotangents);
    READ_INTS(arena, mc_module_meta(m, "train.input_grads"), &fd->input_grads);
    fd->forward = mc_module_model(m);
    fd->backward = mc_module_find(m, mc_module_meta(m, "train.backward"));
    if (!fd->forward || !fd->backward || outputs.n != 1)
        return mc_error(fd->options.diags, (mc_span){0}, MC_E0504, "the module has no backward function");
    fd->n_outputs = outputs.items[0];
    fd->n_forward = fd->forward->last->n_operands;
    return true;
}

static bool
draw_cotangents(mc_fd *fd)
{
    fd->dy = MC_NEW_N(fd->options.arena, mc_ref_tensor, fd->cotangents.n);
    for (size_t i = 0; i < fd->cotangents.n; i++) {
        const mc_ref_tensor *y = &fd->outputs[fd->cotangents.items[i]];
        if (!mc_ref_tensor_init(&fd->dy[i], MOEC_F64, y->dims, y->rank, fd->options.arena)) return false;
        for (int64_t k = 0; k < y->n; k++) {
            const mc_ref_tensor *given = fd->options.cotangents;
            double x = given ? mc_ref_tensor_get(&given[i], k) : mc_noise_normal(fd->options.seed * 64 + i, k);
            mc_ref_tensor_set(&fd->dy[i], k, x);
        }
    }
    return true;
}

bool
mc_fd_open(mc_fd *fd, const mc_fd_options *options, const mc_ref_tensor *inputs, int n_inputs)
{
    *fd = (mc_fd){.options = *options, .scratch = mc_arena_create()};
    mc_map_init(&fd->by_path, options->arena);
    if (!read_metas(fd)) return false;
    mc_ref_options how = {.precision = MC_REF_F64,
                          .weight = give_weight,
                          .weight_user = fd,
                          .record = note_decisions,
                          .record_user = fd,
                          .accumulate = take_gradient,
                          .accumulate_user = fd};
    fd->ref = mc_ref_create(options->module, &how, options->diags);
    for (int i = 0; fd->ref && i < n_inputs; i++) {
        mc_fd_tensor t;
        if (!add_tensor(fd, &t, mc_strf(options->arena, "input %d", i), &inputs[i])) return false;
        mc_vec_push(options->arena, &fd->inputs, t);
    }
    fd->outputs = MC_NEW_N(options->arena, mc_ref_tensor, fd->n_forward);
    return fd->ref && run_forward(fd, options->arena, fd->outputs) && draw_cotangents(fd) &&
           run_backward(fd, fd->outputs);
}

void
mc_fd_close(mc_fd *fd)
{
    mc_ref_destroy(fd->ref);
    mc_arena_destroy(fd->scratch);
}

const mc_fd_tensor *
mc_fd_param(const mc_fd *fd, const char *path)
{
    return mc_map_get(&fd->by_path, mc_str_of(path));
}

/* ---- differences ----------------------------------------------------------------------------------------------- */

/* What is moved: tensor t by h * direction; direction is one element when `dense` is NULL. */
typedef struct probe {
    mc_fd_tensor *t;
    int64_t element;
    const double *dense;
} probe;

static bool
run_at(mc_fd *fd, const probe *p, double h, mc_ref_tensor *results)
{
    double *x = p->t->value.data;
    int64_t n = p->dense ? p->t->value.n : 1;
    double *before = mc_arena_copy(fd->scratch, p->dense ? x : &x[p->element], (size_t)n * sizeof *x);
    for (int64_t i = 0; p->dense && i < n; i++) x[i] += h * p->dense[i];
    if (!p->dense) x[p->element] += h;
    bool ok = run_forward(fd, fd->scratch, results);
    memcpy(p->dense ? x : &x[p->element], before, (size_t)n * sizeof *x);
    return ok;
}

/* (f(h) - f(-h)) / 2h; NaN when a choice changed in between. */
static double
difference(mc_fd *fd, const probe *p, double h, uint64_t decisions)
{
    mc_arena_reset(fd->scratch);
    mc_ref_tensor *up = MC_NEW_N(fd->scratch, mc_ref_tensor, fd->n_forward);
    mc_ref_tensor *down = MC_NEW_N(fd->scratch, mc_ref_tensor, fd->n_forward);
    if (!run_at(fd, p, h, up) || fd->decisions != decisions) return NAN;
    if (!run_at(fd, p, -h, down) || fd->decisions != decisions) return NAN;
    double sum = 0;
    for (size_t i = 0; i < fd->cotangents.n; i++) {
        const mc_ref_tensor *a = &up[fd->cotangents.items[i]], *b = &down[fd->cotangents.items[i]];
        for (int64_t k = 0; k < a->n; k++)
            sum += mc_ref_tensor_get(&fd->dy[i], k) * (mc_ref_tensor_get(a, k) - mc_ref_tensor_get(b, k));
    }
    return sum / (2 * h);
}

static double
error_of(double analytic, double numeric)
{
    return fabs(analytic - numeric) / (1e-3 + fabs(numeric));
}

/* The smallest error over the steps; NaN when no step gives a number, or they disagree among themselves and with us. */
static double
probe_error(mc_fd *fd, const probe *p, double analytic, uint64_t decisions)
{
    double best = NAN, last = NAN, spread = 0;
    for (int i = 0; i < N_STEPS; i++) {
        double wide = difference(fd, p, steps[i], decisions), narrow = difference(fd, p, steps[i] / 2, decisions);
        if (isnan(wide) || isnan(narrow)) continue;
        double numeric = (4 * narrow - wide) / 3, error = error_of(analytic, numeric);
        if (isnan(analytic)) return INFINITY;
        if (!isnan(last)) spread = fmax(spread, error_of(last, numeric));
        last = numeric;
        if (isnan(best) || error < best) best = error;
        if (best <= good_enough) return best;
    }
    return spread > unsteady ? NAN : best;
}

static void
note(mc_fd_report *r, const probe *p, double analytic, double error)
{
    if (isnan(error)) {
        r->n_skipped++;
        return;
    }
    r->n_checked++;
    if (error < r->worst) return;
    r->worst = error;
    snprintf(r->text, sizeof r->text, "%.*s, %s %lld: analytic %.12g, relative error %.3g", MC_FMT(p->t->name),
             p->dense ? "a direction" : "element", p->dense ? 0LL : (long long)p->element, analytic, error);
}

static void
compare_tensor(mc_fd *fd, mc_fd_tensor *t, int per_tensor, uint64_t seed, uint64_t decisions, mc_fd_report *r)
{
    int64_t n = t->value.n;
    if (t->value.dtype != MOEC_F64 || n == 0) return;
    const double *grad = t->grad.data;
    double *direction = MC_NEW_N(fd->options.arena, double, n), along = 0;
    for (int64_t i = 0; i < n; i++) {
        direction[i] = mc_noise_normal(seed, i) / sqrt((double)n);
        along += direction[i] * grad[i];
    }
    probe p = {t, 0, direction};
    note(r, &p, along, probe_error(fd, &p, along, decisions));
    for (int64_t i = 0; i < n && i < per_tensor; i++) {
        p = (probe){t, n <= per_tensor ? i : (int64_t)(mc_noise_uniform(seed ^ 0xE1E, i) * (double)n), NULL};
        note(r, &p, grad[p.element], probe_error(fd, &p, grad[p.element], decisions));
    }
}

mc_fd_report
mc_fd_compare(mc_fd *fd, int per_tensor)
{
    mc_fd_report r = {0};
    mc_ref_tensor *results = MC_NEW_N(fd->options.arena, mc_ref_tensor, fd->n_forward);
    mc_arena_reset(fd->scratch);
    if (!run_forward(fd, fd->scratch, results)) return (mc_fd_report){.worst = INFINITY, .text = "forward fails"};
    uint64_t decisions = fd->decisions, seed = fd->options.seed * 0x3779;
    mc_str frozen = mc_module_meta(fd->options.module, "train.frozen");
    for (size_t i = 0; i < fd->inputs.n; i++)
        compare_tensor(fd, &fd->inputs.items[i], per_tensor, ++seed, decisions, &r);
    for (size_t i = 0; i < fd->params.n; i++)
        if (!mc_path_matches_any(frozen, fd->params.items[i]->name))
            compare_tensor(fd, fd->params.items[i], per_tensor, ++seed, decisions, &r);
    return r;
}

double
mc_fd_distance(const mc_fd *a, const mc_fd *b)
{
    double worst = a->params.n == b->params.n && a->inputs.n == b->inputs.n ? 0 : INFINITY;
    for (size_t i = 0; i < a->params.n + a->inputs.n && worst < INFINITY; i++) {
        const mc_fd_tensor *x = i < a->params.n ? a->params.items[i] : &a->inputs.items[i - a->params.n];
        const mc_fd_tensor *y = i < a->params.n ? mc_map_get(&b->by_path, x->name) : &b->inputs.items[i - a->params.n];
        if (!y || y->grad.n != x->grad.n) return INFINITY;
        for (int64_t k = 0; k < x->grad.n; k++) {
            double error = error_of(mc_ref_tensor_get(&x->grad, k), mc_ref_tensor_get(&y->grad, k));
            if (!(error <= worst)) worst = isnan(error) ? INFINITY : error;
        }
    }
    return worst;
}
