/* rope and position. The one idea: the cosines and sines of a position are computed once for all heads, in the kernel,
 * so no table limits the length of a sequence. Angles are reduced in f64 (good to 4e-11 at position 1e6), the
 * polynomials on [-pi/4, pi/4] are in f32 (6e-8).
 *
 * rope      ptr: x, y   i: rows (B * S), S, H   scratch: cosines, sines
 * position  ptr: p      i: B * S, S */
#include "ir/rope.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"
#include "runtime/base/hash.h"

typedef struct rope_table {
    int64_t half, padded; /* angles; rounded up to whole vectors */
    double *frequencies;  /* padded of them */
    double factor;
} rope_table;

enum { P_HEAD, P_DIMS, P_ADJACENT, P_INVERSE };

static LLVMValueRef
frequency_table(mc_kb *kb, const rope_table *t, const char *kernel)
{
    mc_str name = mc_strf(kb->arena, "%s_frequencies", kernel);
    LLVMValueRef *items = MC_NEW_N(kb->arena, LLVMValueRef, t->padded);
    for (int64_t i = 0; i < t->padded; i++) items[i] = LLVMConstReal(kb->f64, t->frequencies[i]);
    LLVMValueRef array = LLVMConstArray2(kb->f64, items, (uint64_t)t->padded);
    LLVMValueRef global = LLVMAddGlobal(kb->module, LLVMTypeOf(array), name.data);
    LLVMSetInitializer(global, array);
    LLVMSetGlobalConstant(global, 1);
    LLVMSetLinkage(global, LLVMPrivateLinkage);
    LLVMSetAlignment(global, 64);
    return global;
}

static LLVMValueRef
polynomial(mc_kb *kb, LLVMValueRef z, const double *c, int n)
{
    LLVMTypeRef type = LLVMTypeOf(z);
    LLVMValueRef p = kb_const(type, c[0]);
    for (int i = 1; i < n; i++) p = kb_fma(kb, p, z, kb_const(type, c[i]));
    return p;
}

/* cos and sin of an f64 angle, as f32. Coefficients: Cephes sinf and cosf. */
static void
sin_cos(mc_kb *kb, LLVMValueRef angle, LLVMValueRef *out_sin, LLVMValueRef *out_cos)
{
    static const double sin_c[] = {-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1};
    static const double cos_c[] = {2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2};
    LLVMTypeRef f64 = LLVMTypeOf(angle), f32 = kb->vf;
    LLVMValueRef turns = kb_rint(kb, kb_fmul(kb, angle, kb_const(f64, 0.63661977236758134308)));
    LLVMValueRef quadrant = kb_convert(kb, turns, kb->vi);
    LLVMValueRef r = kb_convert(kb, kb_fma(kb, turns, kb_const(f64, -1.57079632679489661923), angle), f32);
    LLVMValueRef z = kb_fmul(kb, r, r);
    LLVMValueRef s = kb_fma(kb, kb_fmul(kb, polynomial(kb, z, sin_c, 3), z), r, r);
    LLVMValueRef c = kb_fma(kb, polynomial(kb, z, cos_c, 3), kb_fmul(kb, z, z),
                            kb_fma(kb, z, kb_const(f32, -0.5), kb_const(f32, 1.0)));
    LLVMValueRef one = kb_iconst(kb->vi, 1), two = kb_iconst(kb->vi, 2), zero = kb_iconst(kb->vi, 0);
    LLVMValueRef odd = kb_icmp(kb, LLVMIntNE, kb_and(kb, quadrant, one), zero);
    LLVMValueRef sin_off = kb_icmp(kb, LLVMIntNE, kb_and(kb, quadrant, two), zero);
    LLVMValueRef cos_off = kb_icmp(kb, LLVMIntNE, kb_and(kb, kb_add(kb, quadrant, one), two), zero);
    LLVMValueRef sin_v = kb_select(kb, odd, c, s), cos_v = kb_select(kb, odd, s, c);
    *out_sin = kb_select(kb, sin_off, kb_fneg(kb, sin_v), sin_v);
    *out_cos = kb_select(kb, cos_off, kb_fneg(kb, cos_v), cos_v);
}

static void
emit_angles(mc_kb *kb, const rope_table *t, bool inverse, LLVMValueRef table, LLVMValueRef position,
            LLVMValueRef cosines, LLVMValueRef sines)
{
    LLVMTypeRef v64 = kb_vector(kb->f64, kb->vl);
    LLVMValueRef at = kb_splat(kb, kb_convert(kb, position, kb->f64), kb->vl), factor = kb_const(kb->vf, t->factor);
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, t->padded), kb_i64(kb, kb->vl), 0, NULL);
    LLVMValueRef s, c, angle = kb_fmul(kb, kb_load(kb, v64, kb_elem(kb, table, l.i, 8), 8), at);
    sin_cos(kb, angle, &s, &c);
    if (inverse) s = kb_fneg(kb, s);
    if (t->factor != 1.0) {
        s = kb_fmul(kb, s, factor);
        c = kb_fmul(kb, c, factor);
    }
    kb_store(kb, c, kb_elem(kb, cosines, l.i, 4), 4);
    kb_store(kb, s, kb_elem(kb, sines, l.i, 4), 4);
    kb_loop_end(kb, &l);
}

static LLVMValueRef
load_v(mc_kb *kb, LLVMValueRef p, LLVMValueRef i, LLVMValueRef mask)
{
    return kb_load_f32(kb, MOEC_F32, kb_elem(kb, p, i, 4), kb->vl, mask);
}

/* Pairs (i, i + half). */
static void
rotate_halves(mc_kb *kb, int64_t half, LLVMValueRef x, LLVMValueRef y, LLVMValueRef cosines, LLVMValueRef sines)
{
    LLVMValueRef x2 = kb_gepi(kb, x, half * 4), y2 = kb_gepi(kb, y, half * 4);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), kb_i64(kb, half), 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef a = load_v(kb, x, v.i, v.mask), b = load_v(kb, x2, v.i, v.mask);
        LLVMValueRef c = load_v(kb, cosines, v.i, NULL), s = load_v(kb, sines, v.i, NULL);
        LLVMValueRef a_out = kb_fma(kb, a, c, kb_fneg(kb, kb_fmul(kb, b, s)));
        LLVMValueRef b_out = kb_fma(kb, b, c, kb_fmul(kb, a, s));
        kb_store_f32(kb, MOEC_F32, a_out, kb_elem(kb, y, v.i, 4), v.mask);
        kb_store_f32(kb, MOEC_F32, b_out, kb_elem(kb, y2, v.i, 4), v.mask);
    }
}

/* Pairs (2i, 2i + 1): every lane takes its own cosine, its neighbour times the sine with a sign. */
static void
rotate_adjacent(mc_kb *kb, int64_t half, LLVMValueRef x, LLVMValueRef y, LLVMValueRef cosines, LLVMValueRef sines)
{
    int twice[64], swapped[64], vl = kb->vl;
    LLVMValueRef signs[64];
    for (int i = 0; i < vl; i++) {
        twice[i] = i / 2;
        swapped[i] = i ^ 1;
        signs[i] = kb_f32(kb, i % 2 ? 1.0 : -1.0);
    }
    LLVMValueRef sign = LLVMConstVector(signs, (unsigned)vl);
    LLVMTypeRef part = kb_vector(kb->f32, vl / 2);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), kb_i64(kb, 2 * half), 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef i = kb_lshr(kb, v.i, kb_i64(kb, 1));
        LLVMValueRef c = kb_load(kb, part, kb_elem(kb, cosines, i, 4), 4);
        LLVMValueRef s = kb_load(kb, part, kb_elem(kb, sines, i, 4), 4), a = load_v(kb, x, v.i, v.mask);
        c = kb_shuffle(kb, c, c, twice, vl);
        s = kb_fmul(kb, kb_shuffle(kb, s, s, twice, vl), sign);
        LLVMValueRef other = kb_shuffle(kb, a, a, swapped, vl);
        LLVMValueRef out = kb_fma(kb, a, c, kb_fmul(kb, other, s));
        kb_store_f32(kb, MOEC_F32, out, kb_elem(kb, y, v.i, 4), v.mask);
    }
}

static void
emit_rope(mc_kb *kb, const mc_plan_kernel *k)
{
    const rope_table *t = k->data;
    int64_t head = k->p[P_HEAD], dims = k->p[P_DIMS];
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef table = frequency_table(kb, t, k->name.data);
    LLVMValueRef x = kb_arg_ptr(kb, 0), y = kb_arg_ptr(kb, 1), n_s = kb_arg_int(kb, 1), heads = kb_arg_int(kb, 2);
    LLVMValueRef past = kb_past(kb), cosines = kb_scratch(kb), sines = kb_gepi(kb, cosines, t->padded * 4);
    kb_loop rows = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef position = kb_add(kb, past, kb_urem(kb, rows.i, n_s));
    emit_angles(kb, t, k->p[P_INVERSE], table, position, cosines, sines);
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), heads, kb_i64(kb, 1), 0, NULL);
    LLVMValueRef at = kb_mul(kb, kb_add(kb, kb_mul(kb, rows.i, heads), l.i), kb_i64(kb, head * 4));
    LLVMValueRef from = kb_gep(kb, x, at), to = kb_gep(kb, y, at);
    (k->p[P_ADJACENT] ? rotate_adjacent : rotate_halves)(kb, t->half, from, to, cosines, sines);
    if (dims < head) {
        kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, dims), kb_i64(kb, head), 0, NULL);
        while (kb_vloop_next(kb, &v)) {
            kb_store_f32(kb, MOEC_F32, load_v(kb, from, v.i, v.mask), kb_elem(kb, to, v.i, 4), v.mask);
        }
    }
    kb_loop_end(kb, &l);
    mc_rows_end(kb, &rows);
    kb_kernel_end(kb);
}

static const rope_table *
make_table(mc_plan *p, const mc_op *op)
{
    rope_table *t = MC_NEW(p->arena, rope_table);
    t->half = mc_rope_dims(op) / 2;
    t->padded = (t->half + p->vl - 1) / p->vl * p->vl;
    t->frequencies = MC_NEW_N(p->arena, double, t->padded);
    mc_rope_frequencies(op, t->frequencies, &t->factor);
    return t;
}

void
mc_cpu_select_rope(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0);
    int64_t head = mc_plan_need_const(p, mc_type_last(x->type), "the width of a head");
    if (p->failed) return;
    if (x->type->dtype != MOEC_F32) {
        mc_plan_refuse(p, "its operand is not f32");
        return;
    }
    const rope_table *t = make_table(p, op);
    uint64_t hash = mc_hash64(t->frequencies, (size_t)t->padded * sizeof(double), 0);
    hash = mc_hash64(&t->factor, sizeof t->factor, hash);
    int64_t params[4] = {[P_HEAD] = head,
                         [P_DIMS] = 2 * t->half,
                         [P_ADJACENT] = mc_attr_bool(op, "adjacent"),
                         [P_INVERSE] = mc_attr_bool(op, "inverse")};
    const char *layout = params[P_ADJACENT] ? "_adjacent" : "", *way = params[P_INVERSE] ? "_inverse" : "";
    mc_plan_kernel *k = mc_plan_kernel_get(p, emit_rope, params, 4, "rope_%d_%d%s%s_%016llx", (int)head,
                                           (int)(2 * t->half), layout, way, (unsigned long long)hash);
    if (!k->data) k->data = t;
    mc_plan_launch(p, k);
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_product(p, x->type, 0, 2));
    mc_plan_int(p, x->type->dims[1]);
    mc_plan_int(p, x->type->dims[2]);
    mc_plan_scratch(p, (uint64_t)t->padded * 8);
}

static void
emit_position(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef y = kb_arg_ptr(kb, 0), n_s = kb_arg_int(kb, 1), past = kb_past(kb);
    kb_loop l = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef at = kb_add(kb, past, kb_urem(kb, l.i, n_s));
    kb_store(kb, kb_convert(kb, at, kb->f32), kb_elem(kb, y, l.i, 4), 4);
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

void
mc_cpu_select_position(mc_plan *p, const mc_op *op)
{
    const mc_value *y = mc_result(op, 0);
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_position, NULL, 0, "position"));
    mc_plan_ptr(p, y);
    mc_plan_int(p, mc_plan_count(p, y->type));
    mc_plan_int(p, y->type->dims[1]);
}
