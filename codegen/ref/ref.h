/* ref: what the interpreter's files share. A kernel is `bool mc_ref_ID(mc_ref_op *k)`, one for each row of ops.def: it
 * reads k->in (by operand index, NULL when absent), writes k->out, and returns false after a diagnostic. Results are
 * allocated, zeroed, in the shapes of the op's types before the kernel runs, except for the ops whose results are
 * someone else's memory (calls and weights). The module is verified, so kernels trust shapes, but never contents. */
#ifndef MC_REF_REF_H
#define MC_REF_REF_H

#include "codegen/ref/interp.h"
#include "ir/op.h"

enum { MC_REF_MAX_DEPTH = 64, MC_REF_UNBOUND = -1 };

typedef struct mc_ref_frame {
    struct mc_ref_frame *caller;
    const mc_func *func;
    mc_str scope;   /* before weight paths */
    mc_str site;    /* identifies the path of call sites: state keys */
    int64_t expert; /* whose body this is, or -1 */
    int depth;
    mc_arena *arena;       /* reset when the frame ends */
    mc_ref_tensor *values; /* by ref->local[value->id] */
    int64_t syms[MC_MAX_SYMS];
    mc_ref_tensor *results;
    int n_results;
} mc_ref_frame;

struct mc_ref {
    const mc_module *module;
    mc_ref_options options;
    mc_diags *diags;
    mc_arena *arena;
    uint32_t *local; /* value id -> index among its function's values */
    mc_arena *frames[MC_REF_MAX_DEPTH];
    int64_t fixed_syms[MC_MAX_SYMS];
    int sym_s, sym_c; /* "S" and "C", or -1 */
    mc_ref_state *state;
    int64_t n_new; /* positions of this run, or MC_REF_UNBOUND while nothing has told */
};

typedef struct mc_ref_op {
    mc_ref *ref;
    mc_ref_frame *frame;
    const mc_op *op;
    bool f64;
    int n_in;
    const mc_ref_tensor **in;
    mc_ref_tensor *out;
    mc_arena *arena; /* of the frame: scratch and results */
} mc_ref_op;

typedef bool mc_ref_kernel(mc_ref_op *k);
#define MC_OP(ID, text, stages, traits, infer, operands, results, attrs, doc) mc_ref_kernel mc_ref_##ID;
#include "ir/ops.def"
#undef MC_OP

/* A diagnostic at the op; returns false. */
bool mc_ref_fail(mc_ref_op *k, mc_code code, const char *format, ...) MOEC_PRINTF(3, 4);
/* The type's dims under the frame's symbols; false after a diagnostic when one has no value or overflows. */
bool mc_ref_dims(mc_ref *ref, const mc_ref_frame *frame, const mc_type *type, mc_span span, int64_t *dims);
/* The dtype in which values of an IR type are held. */
moec_dtype mc_ref_held(const mc_ref *ref, moec_dtype dtype);
/* Runs a function: args are one tensor for each formal, results go to `arena`. `site` tells call sites apart. */
bool mc_ref_invoke(mc_ref_op *k, const mc_func *callee, mc_str scope, int64_t expert, const mc_ref_tensor *args,
                   int n_args, mc_ref_tensor *results, int n_results);
/* True when the op reads positions of x [B, S, ...] and S agrees with the run; *past is where the run begins. */
bool mc_ref_positions(mc_ref_op *k, const mc_ref_tensor *x, int64_t *past);

/* The tensor kept for this op, or NULL before the first step; and its successor, which becomes current when the run
 * succeeds. Data of a new one is zeroed. NULL after a diagnostic. */
const mc_ref_tensor *mc_ref_kept(mc_ref_op *k);
mc_ref_tensor *mc_ref_keep(mc_ref_op *k, moec_dtype dtype, const int64_t *dims, int rank);
void mc_ref_state_commit(mc_ref_state *state, int64_t n_new);
void mc_ref_state_rollback(mc_ref_state *state);

/* Shared by several kernels. */
int64_t mc_ref_rows(const mc_ref_tensor *t);                    /* product of all dims but the last; 1 for scalars */
int64_t mc_ref_last(const mc_ref_tensor *t);                    /* the last dim; 1 for scalars */
mc_ref_tensor mc_ref_slice0(const mc_ref_tensor *t, int64_t i); /* t[i], sharing data */
/* Greater keys first, NaN before all, ties by the lower index: should `a` at index i stand before `b` at index j? */
bool mc_ref_before(double a, int64_t i, double b, int64_t j);
/* The n best of keys[0..count-1], best first. Needs n <= count. */
void mc_ref_best(const double *keys, int64_t count, int64_t n, int64_t *out, mc_arena *arena);
double mc_ref_activate(const mc_ref_op *k, mc_opcode activation, double x);
/* offsets must ascend from 0, for this many experts, and stay within n rows; false after a diagnostic. */
bool mc_ref_check_offsets(mc_ref_op *k, const mc_ref_tensor *offsets, int64_t experts, int64_t n);
/* Rows begin..begin+n-1 of an operand, or those numbers themselves when it is absent; each must be below `limit`. NULL
 * after a diagnostic. */
int64_t *mc_ref_row_list(mc_ref_op *k, const mc_ref_tensor *rows, int64_t begin, int64_t n, int64_t limit);
/* Fills the rows from `row` on with NaN. */
void mc_ref_poison_from(mc_ref_tensor *y, int64_t row);

/* Attention of operands q, k (and select, operand 4): which keys query (b, s) sees (false after a diagnostic); the
 * logit of the rows at q_at and k_at, `width` long; and the softmax over the marked keys, in place, where a sink (may
 * be NULL) joins the sum but takes nothing. */
bool mc_ref_mark_keys(mc_ref_op *k, int64_t b, int64_t s, bool *mark);
double mc_ref_attention_logit(const mc_ref_op *k, int64_t q_at, int64_t k_at, int64_t width);
void mc_ref_masked_softmax(const mc_ref_op *k, double *p, const bool *mark, int64_t C, const double *sink);

/* What moe.capacity says, also used by moe: sets id -1 and weight 0 for dropped choices of weights, ids [T, k]. */
typedef struct mc_ref_capacity {
    int64_t experts;
    double factor;
    bool per_slot, by_score;
} mc_ref_capacity;
void mc_ref_drop(const mc_ref_capacity *rule, mc_ref_tensor *weights, mc_ref_tensor *ids, mc_arena *arena);

#endif
