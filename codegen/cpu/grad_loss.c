/* Routing losses, their derivatives, and loads. The one idea: what is one number for all tokens is one thread's work,
 * in ascending order of tokens and added up in f64, so that it depends on nothing else; what is a row for each token is
 * split over threads, each of which counts the choices for itself.
 *
 * load          ptr: weights, ids, load          i: T, k, E
 * balance       ptr: scores, ids, loss           i: sequences, T of one, k, E   scratch: counts
 * balance_grad  ptr: ids, d, dscores             i: sequences, T of one, k, E   scratch: counts   f: d when constant
 * z_loss        ptr: logits, loss                i: T, E
 * z_loss_grad   ptr: logits, d, dlogits          i: T, E                                          f: d when constant */
#include "codegen/cpu/math.h"
#include "codegen/cpu/route.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

#include <math.h>

static kb_loop
count_to(mc_kb *kb, LLVMValueRef n, int n_carried, const LLVMValueRef *init)
{
    return kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, 1), n_carried, init);
}

static kb_if
first_thread(mc_kb *kb)
{
    return kb_if_begin(kb, kb_icmp(kb, LLVMIntEQ, kb_thread(kb), kb_i64(kb, 0)));
}

static LLVMValueRef
to_f64(mc_kb *kb, LLVMValueRef n)
{
    return kb_convert(kb, n, kb->f64);
}

static LLVMValueRef
load_vector(mc_kb *kb, LLVMValueRef p, LLVMValueRef i, LLVMValueRef mask)
{
    return kb_load_f32(kb, MOEC_F32, kb_elem(kb, p, i, 4), kb->vl, mask);
}

static bool
need_f32(mc_plan *p, const mc_value *v)
{
    return v->type->dtype == MOEC_F32 || mc_plan_refuse(p, "an operand or result is not f32");
}

static bool
need_ids(mc_plan *p, const mc_value *v)
{
    return v->type->dtype == MOEC_I32 || mc_plan_refuse(p, "its ids are not i32");
}

/* ---- counting ---------------------------------------------------------------------------------------------------- */

/* How often each of n_e experts stands among n ids, as f32. Counted as integers: beyond 2^24 f32 cannot count. */
static void
tally(mc_kb *kb, LLVMValueRef ids, LLVMValueRef n, LLVMValueRef n_e, LLVMValueRef counts)
{
    kb_loop clear = count_to(kb, n_e, 0, NULL);
    mc_set_i32(kb, counts, clear.i, kb_i64(kb, 0));
    kb_loop_end(kb, &clear);
    kb_loop l = count_to(kb, n, 0, NULL);
    LLVMValueRef id = mc_get_i32(kb, ids, l.i);
    kb_if real = kb_if_begin(kb, kb_icmp(kb, LLVMIntULT, id, n_e));
    mc_set_i32(kb, counts, id, kb_add(kb, mc_get_i32(kb, counts, id), kb_i64(kb, 1)));
    kb_if_end(kb, &real);
    kb_loop_end(kb, &l);
    kb_loop widen = count_to(kb, n_e, 0, NULL);
    mc_set_f32(kb, counts, widen.i, kb_convert(kb, mc_get_i32(kb, counts, widen.i), kb->f32));
    kb_loop_end(kb, &widen);
}

static void
emit_load(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    kb_if first = first_thread(kb);
    LLVMValueRef weights = kb_arg_ptr(kb, 0), ids = kb_arg_ptr(kb, 1), load = kb_arg_ptr(kb, 2);
    LLVMValueRef n_e = kb_arg_int(kb, 2), n = kb_mul(kb, kb_arg_int(kb, 0), kb_arg_int(kb, 1));
    tally(kb, ids, n, n_e, load);
    LLVMValueRef sums = kb_elem(kb, load, n_e, 4);
    kb_loop clear = count_to(kb, n_e, 0, NULL);
    mc_set_f32(kb, sums, clear.i, kb_f32(kb, 0));
    kb_loop_end(kb, &clear);
    kb_loop l = count_to(kb, n, 0, NULL);
    LLVMValueRef id = mc_get_i32(kb, ids, l.i);
    kb_if real = kb_if_begin(kb, kb_icmp(kb, LLVMIntULT, id, n_e));
    mc_set_f32(kb, sums, id, kb_fadd(kb, mc_get_f32(kb, sums, id), mc_get_f32(kb, weights, l.i)));
    kb_if_end(kb, &real);
    kb_loop_end(kb, &l);
    kb_if_end(kb, &first);
    kb_kernel_end(kb);
}

void
mc_cpu_select_load(mc_plan *p, const mc_op *op)
{
    const mc_value *weights = mc_operand(op, 0), *ids = mc_operand(op, 1);
    if (!need_f32(p, weights) || !need_ids(p, ids)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_load, NULL, 0, "moe_load"));
    mc_plan_ptr(p, weights);
    mc_plan_ptr(p, ids);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_rows(p, ids->type));
    mc_plan_int(p, mc_type_last(ids->type));
    mc_plan_const(p, mc_attr_int(op, "experts"));
}

/* ---- balance ----------------------------------------------------------------------------------------------------- */

typedef struct balance {
    LLVMValueRef ids, n_seq, len, k, n_e, counts;
} balance;

static balance
begin_balance(mc_kb *kb, LLVMValueRef ids)
{
    return (balance){.ids = ids,
                     .n_seq = kb_arg_int(kb, 0),
                     .len = kb_arg_int(kb, 1),
                     .k = kb_arg_int(kb, 2),
                     .n_e = kb_arg_int(kb, 3),
                     .counts = kb_scratch(kb)};
}

static void
tally_sequence(mc_kb *kb, const balance *b, LLVMValueRef sequence)
{
    LLVMValueRef n = kb_mul(kb, b->len, b->k);
    tally(kb, kb_elem(kb, b->ids, kb_mul(kb, sequence, n), 4), n, b->n_e, b->counts);
}

/* E / (k T) / T / sequences, in f64: what a count times a score is worth. */
static LLVMValueRef
worth(mc_kb *kb, const balance *b)
{
    LLVMValueRef len = to_f64(kb, b->len), f = kb_fdiv(kb, to_f64(kb, b->n_e), kb_fmul(kb, to_f64(kb, b->k), len));
    return kb_fdiv(kb, f, kb_fmul(kb, len, to_f64(kb, b->n_seq)));
}

typedef struct pair {
    LLVMValueRef a, b;
} pair;

static LLVMValueRef
step_dot(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    const pair *p = context;
    return kb_fma(kb, load_vector(kb, p->a, i, mask), load_vector(kb, p->b, i, mask), acc);
}

static void
emit_balance(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    kb_if first = first_thread(kb);
    LLVMValueRef scores = kb_arg_ptr(kb, 0), loss = kb_arg_ptr(kb, 2), total = kb_const(kb->f64, 0);
    balance b = begin_balance(kb, kb_arg_ptr(kb, 1));
    kb_loop s = count_to(kb, b.n_seq, 1, &total);
    tally_sequence(kb, &b, s.i);
    kb_loop t = count_to(kb, b.len, 1, &s.v[0]);
    LLVMValueRef row = kb_mul(kb, kb_add(kb, kb_mul(kb, s.i, b.len), t.i), b.n_e);
    pair p = {kb_elem(kb, scores, row, 4), b.counts};
    LLVMValueRef dot = mc_rows_fold(kb, b.n_e, 0, false, step_dot, &p, kb_reduce_add);
    t.v[0] = kb_fadd(kb, t.v[0], kb_convert(kb, dot, kb->f64));
    kb_loop_end(kb, &t);
    s.v[0] = t.v[0];
    kb_loop_end(kb, &s);
    LLVMValueRef none = kb_icmp(kb, LLVMIntEQ, kb_mul(kb, b.n_seq, b.len), kb_i64(kb, 0));
    LLVMValueRef x = kb_convert(kb, kb_fmul(kb, s.v[0], worth(kb, &b)), kb->f32);
    kb_store(kb, kb_select(kb, none, kb_f32(kb, 0), x), loss, 4);
    kb_if_end(kb, &first);
    kb_kernel_end(kb);
}

/* The sizes of begin_balance. */
static void
give_balance(mc_plan *p, const mc_op *op, const mc_value *ids, const mc_value *scores)
{
    int split = mc_str_is(mc_attr_str(op, "per"), "sequence") ? 1 : 0;
    int64_t experts = mc_plan_need_const(p, mc_type_last(scores->type), "the number of experts");
    mc_plan_int(p, mc_plan_product(p, ids->type, 0, split));
    mc_plan_int(p, mc_plan_product(p, ids->type, split, ids->type->rank - 1));
    mc_plan_int(p, mc_type_last(ids->type));
    mc_plan_const(p, experts);
    mc_plan_scratch(p, (uint64_t)experts * 4);
}

void
mc_cpu_select_balance(mc_plan *p, const mc_op *op)
{
    const mc_value *scores = mc_operand(op, 0), *ids = mc_operand(op, 1);
    if (!need_f32(p, scores) || !need_ids(p, ids)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_balance, NULL, 0, "moe_balance"));
    mc_plan_ptr(p, scores);
    mc_plan_ptr(p, ids);
    mc_plan_ptr(p, mc_result(op, 0));
    give_balance(p, op, ids, scores);
}

/* ---- cotangents: a scalar, in memory or known here --------------------------------------------------------------- */

static LLVMValueRef
cotangent(mc_kb *kb, bool constant, LLVMValueRef p)
{
    return constant ? kb_arg_float(kb, 0) : kb_load(kb, kb->f32, p, 4);
}

static void
give_cotangent(mc_plan *p, const mc_value *d)
{
    double value;
    if (mc_plan_is_const(d, &value)) {
        mc_plan_ptr(p, NULL);
        mc_plan_float(p, value);
    } else {
        mc_plan_ptr(p, d);
    }
}

static int64_t
is_constant(const mc_value *d)
{
    double value;
    return mc_plan_is_const(d, &value);
}

/* Rows begin..end-1 of y become the counts times `scale`. */
static void
write_counts(mc_kb *kb, const balance *b, LLVMValueRef y, LLVMValueRef begin, LLVMValueRef end, LLVMValueRef scale)
{
    scale = kb_splat(kb, scale, kb->vl);
    kb_loop l = kb_loop_begin(kb, begin, end, kb_i64(kb, 1), 0, NULL);
    LLVMValueRef to = kb_elem(kb, y, kb_mul(kb, l.i, b->n_e), 4);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), b->n_e, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef x = kb_fmul(kb, load_vector(kb, b->counts, v.i, v.mask), scale);
        kb_store_f32(kb, MOEC_F32, x, kb_elem(kb, to, v.i, 4), v.mask);
    }
    kb_loop_end(kb, &l);
}

static void
emit_balance_grad(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    LLVMValueRef d = kb_arg_ptr(kb, 1), y = kb_arg_ptr(kb, 2), begin, end;
    balance b = begin_balance(kb, kb_arg_ptr(kb, 0));
    d = kb_convert(kb, cotangent(kb, kernel->p[0], d), kb->f64);
    LLVMValueRef scale = kb_convert(kb, kb_fmul(kb, d, worth(kb, &b)), kb->f32);
    kb_split(kb, kb_mul(kb, b.n_seq, b.len), 1, &begin, &end);
    kb_loop s = count_to(kb, b.n_seq, 0, NULL);
    LLVMValueRef at = kb_mul(kb, s.i, b.len), low = kb_max(kb, begin, at);
    LLVMValueRef high = kb_min(kb, end, kb_add(kb, at, b.len));
    kb_if mine = kb_if_begin(kb, kb_icmp(kb, LLVMIntSLT, low, high));
    tally_sequence(kb, &b, s.i);
    write_counts(kb, &b, y, low, high, scale);
    kb_if_end(kb, &mine);
    kb_loop_end(kb, &s);
    kb_kernel_end(kb);
}

void
mc_cpu_select_balance_grad(mc_plan *p, const mc_op *op)
{
    const mc_value *ids = mc_operand(op, 0), *d = mc_operand(op, 1), *y = mc_result(op, 0);
    int64_t constant = is_constant(d);
    if (!need_ids(p, ids) || !need_f32(p, d) || !need_f32(p, y)) return;
    const char *form = constant ? "_const" : "";
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_balance_grad, &constant, 1, "moe_balance_grad%s", form));
    mc_plan_ptr(p, ids);
    give_cotangent(p, d);
    mc_plan_ptr(p, y);
    give_balance(p, op, ids, y);
}

/* ---- z loss ------------------------------------------------------------------------------------------------------ */

static LLVMValueRef
step_max(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    const pair *p = context;
    return kb_fmax(kb, acc, load_vector(kb, p->a, i, mask));
}

static LLVMValueRef
exp_of(mc_kb *kb, const pair *p, LLVMValueRef i, LLVMValueRef mask)
{
    return kb_exp(kb, kb_fsub(kb, load_vector(kb, p->a, i, mask), kb_splat(kb, p->b, kb->vl)));
}

static LLVMValueRef
step_exp(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    return kb_fadd(kb, acc, exp_of(kb, context, i, mask));
}

/* p->a: a row; p->b becomes its maximum. Returns log sum exp; *sum that of exp(x - maximum). */
static LLVMValueRef
log_sum(mc_kb *kb, LLVMValueRef n_e, pair *p, LLVMValueRef *sum)
{
    p->b = mc_rows_fold(kb, n_e, -HUGE_VAL, true, step_max, p, kb_reduce_max);
    *sum = mc_rows_fold(kb, n_e, 0, true, step_exp, p, kb_reduce_add);
    return kb_fadd(kb, p->b, kb_log(kb, *sum));
}

static void
emit_z_loss(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    kb_if first = first_thread(kb);
    LLVMValueRef logits = kb_arg_ptr(kb, 0), loss = kb_arg_ptr(kb, 1), n = kb_arg_int(kb, 0), n_e = kb_arg_int(kb, 1);
    LLVMValueRef total = kb_const(kb->f64, 0), sum;
    kb_loop l = count_to(kb, n, 1, &total);
    pair p = {.a = kb_elem(kb, logits, kb_mul(kb, l.i, n_e), 4)};
    LLVMValueRef z = kb_convert(kb, log_sum(kb, n_e, &p, &sum), kb->f64);
    l.v[0] = kb_fma(kb, z, z, l.v[0]);
    kb_loop_end(kb, &l);
    LLVMValueRef mean = kb_convert(kb, kb_fdiv(kb, l.v[0], to_f64(kb, n)), kb->f32);
    LLVMValueRef none = kb_icmp(kb, LLVMIntEQ, n, kb_i64(kb, 0));
    kb_store(kb, kb_select(kb, none, kb_f32(kb, 0), mean), loss, 4);
    kb_if_end(kb, &first);
    kb_kernel_end(kb);
}

void
mc_cpu_select_z_loss(mc_plan *p, const mc_op *op)
{
    const mc_value *logits = mc_operand(op, 0);
    if (!need_f32(p, logits)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_z_loss, NULL, 0, "moe_z_loss"));
    mc_plan_ptr(p, logits);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_rows(p, logits->type));
    mc_plan_int(p, mc_type_last(logits->type));
}

static void
emit_z_loss_grad(mc_kb *kb, const mc_plan_kernel *kernel)
{
    kb_kernel_begin(kb, kernel->name.data);
    LLVMValueRef logits = kb_arg_ptr(kb, 0), d = kb_arg_ptr(kb, 1), y = kb_arg_ptr(kb, 2), sum;
    LLVMValueRef n = kb_arg_int(kb, 0), n_e = kb_arg_int(kb, 1);
    LLVMValueRef twice = kb_fmul(kb, kb_f32(kb, 2), cotangent(kb, kernel->p[0], d));
    LLVMValueRef scale = kb_fdiv(kb, twice, kb_convert(kb, n, kb->f32));
    kb_loop rows = mc_rows_begin(kb, n);
    LLVMValueRef at = kb_mul(kb, rows.i, n_e), to = kb_elem(kb, y, at, 4);
    pair p = {.a = kb_elem(kb, logits, at, 4)};
    LLVMValueRef factor = kb_fmul(kb, scale, log_sum(kb, n_e, &p, &sum));
    factor = kb_splat(kb, kb_fdiv(kb, factor, sum), kb->vl);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), n_e, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef e = kb_fmul(kb, exp_of(kb, &p, v.i, v.mask), factor);
        kb_store_f32(kb, MOEC_F32, e, kb_elem(kb, to, v.i, 4), v.mask);
    }
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

void
mc_cpu_select_z_loss_grad(mc_plan *p, const mc_op *op)
{
    const mc_value *logits = mc_operand(op, 0), *d = mc_operand(op, 1);
    int64_t constant = is_constant(d);
    if (!need_f32(p, logits) || !need_f32(p, d)) return;
    const char *form = constant ? "_const" : "";
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_z_loss_grad, &constant, 1, "moe_z_loss_grad%s", form));
    mc_plan_ptr(p, logits);
    give_cotangent(p, d);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_rows(p, logits->type));
    mc_plan_int(p, mc_type_last(logits->type));
}
