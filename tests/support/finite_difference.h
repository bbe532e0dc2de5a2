/* finite_difference: are the gradients of a differentiated module (autodiff) those of its forward function? Both run in
 * the f64 interpreter, with cotangents drawn at random; every gradient is compared with central differences of
 * sum(cotangent * output). The error is |analytic - numeric| / (1e-3 + |numeric|).
 *
 *     mc_fd fd;
 *     if (!mc_fd_open(&fd, &(mc_fd_options){m, arena, diags, weight, user, seed}, inputs, n)) ...
 *     mc_fd_report r = mc_fd_compare(&fd, 24);
 *     ck_assert_msg(r.worst <= 1e-6 && r.n_skipped * 20 <= r.n_checked, "%s", r.text);
 *     mc_fd_close(&fd);
 *
 * Where a choice (an expert, the side of a corner) changes between the points of a difference there is no derivative to
 * compare: a smaller step is tried, then the element is skipped, and counted. */
#ifndef MC_SUPPORT_FINITE_DIFFERENCE_H
#define MC_SUPPORT_FINITE_DIFFERENCE_H

#include "codegen/ref/interp.h"

typedef struct mc_fd_options {
    const mc_module *module; /* after autodiff */
    mc_arena *arena;
    mc_diags *diags;
    mc_ref_weight_fn *weight; /* where parameters start */
    void *weight_user;
    uint64_t seed;                   /* of the cotangents and of the elements looked at */
    const mc_ref_tensor *cotangents; /* one for each output that has one; NULL: random */
} mc_fd_options;

typedef struct mc_fd_tensor { /* an input or a parameter; f64, or integers, which have no gradient */
    mc_str name;
    mc_ref_tensor value, grad;
} mc_fd_tensor;

typedef struct mc_fd {
    mc_fd_options options;
    mc_ref *ref;
    mc_arena *scratch; /* of one run */
    const mc_func *forward, *backward;
    int n_outputs, n_forward; /* results that are outputs; all */
    MC_VEC(int) cotangents, input_grads;
    mc_ref_tensor *dy;      /* by cotangent */
    mc_ref_tensor *outputs; /* of the first run */
    MC_VEC(mc_fd_tensor) inputs;
    MC_VEC(mc_fd_tensor *) params; /* in the order in which forward first reads them */
    mc_map by_path;                /* path -> mc_fd_tensor * */
    uint64_t decisions;            /* of the last run: hash of all choices */
    bool lost;                     /* backward gave a gradient to no parameter, or one of another size */
} mc_fd;

typedef struct mc_fd_report {
    double worst;
    int n_checked, n_skipped;
    char text[300]; /* the worst place */
} mc_fd_report;

/* Runs forward and backward once: outputs and gradients are there afterwards. False after a diagnostic. */
bool mc_fd_open(mc_fd *fd, const mc_fd_options *options, const mc_ref_tensor *inputs, int n_inputs);
void mc_fd_close(mc_fd *fd);
const mc_fd_tensor *mc_fd_param(const mc_fd *fd, const char *path); /* NULL when there is none */
/* Each tensor along one random direction, and at `per_tensor` elements (all of them when it has no more). */
mc_fd_report mc_fd_compare(mc_fd *fd, int per_tensor);
/* The greatest relative error of the gradients of `a` against those of `b`, another form of the same model; infinite
 * when they have other parameters. */
double mc_fd_distance(const mc_fd *a, const mc_fd *b);

#endif
