/* The IR's data structures: dimensions, types, ops, edits, the builder, the structural verifier, names.
 * The text form and inference refusals are in test_ir_text.c. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ir/build.h"
#include "ir/print.h"
#include "ir/verify.h"
#include "tests/support/ir_fixture.h"

static mc_ir_fixture x;
static mc_module *m;

static void
setup(void)
{
    mc_ir_setup(&x);
    m = mc_ir_module(&x);
}

static void
teardown(void)
{
    mc_ir_teardown(&x);
}

/* ---- dimensions ---- */

static mc_dim
dim(int64_t mul, int n_syms, int a, int b, int c)
{
    mc_dim out = mc_dim_const(mul);
    const int syms[] = {a, b, c};
    for (int i = 0; i < n_syms; i++) ck_assert(mc_dim_mul(out, mc_dim_sym(syms[i]), &out));
    return out;
}

START_TEST(dims_are_normal)
{
    mc_dim seven = mc_dim_const(7);
    ck_assert_int_eq(seven.mul, 7);
    ck_assert_int_eq(seven.add, 0);
    ck_assert(mc_dim_is_const(seven));
    ck_assert(!mc_dim_is_const(mc_dim_sym(3)));
    /* A product with 0 is the constant 0, whatever the symbols. */
    mc_dim zero;
    ck_assert(mc_dim_mul(mc_dim_const(0), mc_dim_sym(1), &zero));
    ck_assert(mc_dim_eq(zero, mc_dim_const(0)));
    /* The order of factors does not matter. */
    ck_assert(mc_dim_eq(dim(6, 3, 2, 0, 1), dim(6, 3, 1, 2, 0)));
    ck_assert(!mc_dim_eq(dim(6, 2, 0, 0, 0), dim(6, 1, 0, 0, 0)));
    ck_assert(mc_dim_eq((mc_dim){.add = 5}, mc_dim_const(5)));
}
END_TEST

START_TEST(dims_multiply)
{
    mc_dim out, plus = mc_dim_sym(0);
    plus.add = 3;
    ck_assert(mc_dim_mul(dim(2, 1, 0, 0, 0), dim(3, 2, 1, 0, 0), &out));
    ck_assert(mc_dim_eq(out, dim(6, 3, 0, 0, 1)));
    ck_assert(mc_dim_mul(plus, mc_dim_const(4), &out));
    ck_assert_int_eq(out.mul, 4);
    ck_assert_int_eq(out.add, 12);
    ck_assert(!mc_dim_mul(plus, mc_dim_sym(1), &out));
    ck_assert(!mc_dim_mul(dim(1, 2, 0, 1, 0), dim(1, 2, 0, 1, 0), &out));
    ck_assert(!mc_dim_mul(mc_dim_const(INT64_MAX), mc_dim_const(2), &out));
    plus.add = INT64_MAX;
    ck_assert(!mc_dim_mul(plus, mc_dim_const(2), &out));
    const mc_dim axes[] = {mc_dim_const(4), mc_dim_sym(2), mc_dim_const(5)};
    ck_assert(mc_dims_product(axes, 3, &out));
    ck_assert(mc_dim_eq(out, dim(20, 1, 2, 0, 0)));
    ck_assert(mc_dims_product(axes, 0, &out));
    ck_assert(mc_dim_eq(out, mc_dim_const(1)));
}
END_TEST

START_TEST(dims_divide)
{
    mc_dim out, plus = dim(6, 1, 0, 0, 0), part = dim(2, 1, 0, 0, 0);
    ck_assert(mc_dim_div(dim(12, 3, 0, 1, 1), dim(4, 1, 1, 0, 0), &out));
    ck_assert(mc_dim_eq(out, dim(3, 2, 0, 1, 0)));
    ck_assert(!mc_dim_div(dim(12, 1, 0, 0, 0), dim(5, 0, 0, 0, 0), &out));
    ck_assert(!mc_dim_div(dim(12, 1, 0, 0, 0), dim(1, 1, 1, 0, 0), &out));
    ck_assert(!mc_dim_div(dim(12, 1, 0, 0, 0), dim(1, 2, 0, 0, 0), &out));
    ck_assert(!mc_dim_div(mc_dim_const(12), mc_dim_const(0), &out));
    plus.add = 9;
    ck_assert(mc_dim_div(plus, mc_dim_const(3), &out));
    ck_assert_int_eq(out.mul, 2);
    ck_assert_int_eq(out.add, 3);
    ck_assert(!mc_dim_div(plus, mc_dim_const(6), &out));
    part.add = 3;
    ck_assert(mc_dim_div(plus, part, &out)); /* 6 a + 9 = 3 (2 a + 3) */
    ck_assert(mc_dim_eq(out, mc_dim_const(3)));
    part.add = 4;
    ck_assert(!mc_dim_div(plus, part, &out));
}
END_TEST

/* Where products and quotients exist, they agree with the numbers for every small value of the symbols. */
START_TEST(dims_agree_with_numbers)
{
    int n_products = 0, n_quotients = 0;
    for (int a = 0; a < 81; a++) {
        for (int b = 0; b < 81; b++) {
            mc_dim da = dim(1 + a % 3 * 2, a / 9 % 3, a / 27, 0, 0), db = dim(1 + b % 3, b / 9 % 3, b / 27, 1, 0);
            da.add = da.n_syms ? a / 3 % 3 : 0;
            db.add = db.n_syms ? b / 3 % 3 : 0;
            mc_dim product, quotient;
            bool multiplies = mc_dim_mul(da, db, &product), divides = mc_dim_div(da, db, &quotient);
            n_products += multiplies;
            n_quotients += divides;
            for (int v = 0; v < 64; v++) {
                const int64_t values[] = {1 + v % 4, 1 + v / 4 % 4, 1 + v / 16};
                int64_t na = mc_dim_eval(da, values), nb = mc_dim_eval(db, values);
                if (multiplies) ck_assert_int_eq(mc_dim_eval(product, values), na * nb);
                if (divides) ck_assert_int_eq(mc_dim_eval(quotient, values) * nb, na);
            }
        }
    }
    ck_assert_int_gt(n_products, 1000);
    ck_assert_int_gt(n_quotients, 100);
}
END_TEST

START_TEST(dims_print)
{
    mc_symbol_get(m, MC_STR("B"));
    mc_symbol_get(m, MC_STR("S"));
    mc_dim plus = dim(2, 2, 1, 0, 0);
    plus.add = 3;
    mc_dim minus = mc_dim_sym(1);
    minus.add = -3;
    const mc_dim dims[] = {mc_dim_const(42), mc_dim_sym(1), plus, minus};
    mc_str text = mc_type_text(m, mc_type_get(m, MOEC_BF16, dims, 4), x.arena);
    ck_assert_str_eq(text.data, "bf16[42, S, 2*B*S + 3, S - 3]");
    ck_assert_str_eq(mc_type_text(m, mc_type_scalar(m, MOEC_I32), x.arena).data, "i32");
}
END_TEST

/* ---- types and symbols ---- */

START_TEST(types_are_interned)
{
    const mc_dim dims[] = {mc_dim_sym(0), mc_dim_const(8)}, written[] = {mc_dim_sym(0), {.mul = 3, .add = 5}};
    const mc_type *t = mc_type_get(m, MOEC_F32, dims, 2);
    ck_assert_ptr_eq(t, mc_type_get(m, MOEC_F32, dims, 2));
    ck_assert_ptr_eq(t, mc_type_get(m, MOEC_F32, written, 2)); /* 3 + 5 is 8 */
    ck_assert_ptr_ne(t, mc_type_get(m, MOEC_BF16, dims, 2));
    ck_assert_ptr_ne(t, mc_type_get(m, MOEC_F32, dims, 1));
    ck_assert_ptr_eq(t, mc_type_with_dtype(m, mc_type_get(m, MOEC_BF16, dims, 2), MOEC_F32));
    ck_assert_ptr_eq(t, mc_type_with_last(m, mc_type_with_last(m, t, mc_dim_const(9)), mc_dim_const(8)));
    ck_assert(mc_dim_eq(mc_type_last(t), mc_dim_const(8)));
    mc_dim rows;
    ck_assert(mc_type_rows(t, &rows) && mc_dim_eq(rows, mc_dim_sym(0)));
    ck_assert(!mc_type_rows(mc_type_scalar(m, MOEC_F32), &rows));
    ck_assert(mc_type_is_float(t) && !mc_type_is_float(mc_type_scalar(m, MOEC_I64)));
}
END_TEST

START_TEST(symbols_are_found_or_added)
{
    ck_assert_int_eq(mc_symbol_get(m, MC_STR("B")), 0);
    ck_assert_int_eq(mc_symbol_get(m, MC_STR("S")), 1);
    ck_assert_int_eq(mc_symbol_get(m, MC_STR("B")), 0);
    for (int i = 2; i < MC_MAX_SYMS; i++) ck_assert_int_eq(mc_symbol_get(m, mc_strf(x.arena, "s%d", i)), i);
    ck_assert_int_eq(mc_symbol_get(m, MC_STR("more")), -1);
    ck_assert_int_eq(mc_symbol_get(m, MC_STR("S")), 1);
}
END_TEST

START_TEST(metas_keep_their_order)
{
    mc_module_set_meta(m, MC_STR("b"), MC_STR("1"));
    mc_module_set_meta(m, MC_STR("a"), MC_STR("2"));
    mc_module_set_meta(m, MC_STR("b"), MC_STR("3"));
    ck_assert_uint_eq(m->metas.n, 2);
    ck_assert(mc_str_is(mc_module_meta(m, "b"), "3"));
    ck_assert(mc_str_is(m->metas.items[0].key, "b"));
    ck_assert_uint_eq(mc_module_meta(m, "c").len, 0);
}
END_TEST

/* ---- the table ---- */

START_TEST(op_table_is_whole)
{
    for (int i = 0; i < MC_N_OPCODES; i++) {
        const mc_op_info *info = &mc_op_infos[i];
        ck_assert_int_eq(mc_opcode_find(mc_str_of(info->text)), i);
        ck_assert_msg(info->stages && info->infer && info->doc[0], "%s", info->text);
        /* VAR and OPT come last, so that operands can be left out from the end. */
        for (int k = 1; k < info->n_operands; k++) {
            ck_assert_msg(info->operands[k].arity >= info->operands[k - 1].arity, "%s", info->text);
        }
        for (int k = 0; k < info->n_attrs; k++) {
            ck_assert_int_eq(mc_attr_index((mc_opcode)i, mc_str_of(info->attrs[k].name)), k);
        }
    }
    ck_assert_int_eq(mc_opcode_find(MC_STR("moe.nothing")), MC_N_OPCODES);
    ck_assert_int_eq(mc_attr_index(MC_OP_SILU, MC_STR("eps")), -1);
}
END_TEST

/* ---- edits ---- */

/* @f(%x: f32[T, 8]) = silu(x) + x, returned. */
typedef struct small {
    mc_func *f;
    mc_value *arg, *silu, *sum;
} small;

static small
make_small(const char *name)
{
    small s;
    const mc_dim dims[] = {mc_dim_sym(mc_symbol_get(m, MC_STR("T"))), mc_dim_const(8)};
    s.f = mc_func_create(m, mc_str_of(name), (mc_span){0});
    s.arg = mc_func_add_formal(s.f, mc_type_get(m, MOEC_F32, dims, 2), MC_STR("x"));
    mc_builder b = mc_builder_at_end(s.f, &x.diags);
    s.silu = mc_build_unary(&b, MC_OP_SILU, s.arg);
    s.sum = mc_build_binary(&b, MC_OP_ADD, s.silu, s.arg);
    ck_assert_ptr_nonnull(mc_build_return(&b, &s.sum, 1));
    ck_assert(mc_module_verify(m, &x.diags));
    return s;
}

START_TEST(uses_follow_edits)
{
    small s = make_small("f");
    ck_assert(mc_value_has_one_use(s.silu));
    ck_assert(mc_value_has_uses(s.arg) && !mc_value_has_one_use(s.arg));
    ck_assert_ptr_eq(s.arg->uses->user, s.sum->def); /* newest first */

    mc_op_set_operand(s.sum->def, 0, s.arg);
    ck_assert(!mc_value_has_uses(s.silu));
    ck_assert(mc_module_verify(m, &x.diags));
    mc_op_remove(s.silu->def);
    ck_assert_ptr_eq(s.f->first, s.sum->def);
    ck_assert_ptr_null(s.silu->def->func);
    ck_assert(mc_module_verify(m, &x.diags));

    mc_value_replace_uses(s.sum, s.arg);
    ck_assert(!mc_value_has_uses(s.sum));
    ck_assert_ptr_eq(mc_operand(s.f->last, 0), s.arg);
    mc_op_remove(s.sum->def);
    ck_assert_ptr_eq(s.f->first, s.f->last);
    ck_assert(mc_module_verify(m, &x.diags));
    ck_assert_int_eq(x.diags.n_errors, 0);
}
END_TEST

START_TEST(a_loop_may_remove_where_it_stands)
{
    small s = make_small("f");
    mc_value_replace_uses(s.sum, s.arg);
    int n = 0;
    MC_FOR_OPS(op, s.f)
    {
        n++;
        if (op == s.sum->def) mc_op_remove(op);
    }
    ck_assert_int_eq(n, 3);
    ck_assert(mc_module_verify(m, &x.diags));
}
END_TEST

START_TEST(ops_move)
{
    small s = make_small("f");
    mc_builder b = mc_builder_before(s.f->last, &x.diags);
    mc_value *late = mc_build_unary(&b, MC_OP_EXP, s.arg);
    ck_assert_ptr_eq(s.f->last->prev, late->def);
    mc_op_move_before(s.f->first, late->def);
    ck_assert_ptr_eq(s.f->first, late->def);
    mc_op_move_before(late->def, late->def);
    ck_assert(mc_module_verify(m, &x.diags));
    mc_op_set_operand(s.silu->def, 0, late);
    ck_assert(mc_module_verify(m, &x.diags));
    mc_op_move_before(s.f->last, late->def); /* behind its user */
    ck_assert(!mc_module_verify(m, &x.diags));
    ck_assert(mc_ir_said(&x, MC_E0407, "not defined before its use"));
}
END_TEST

START_TEST(absent_operands_have_a_place)
{
    small s = make_small("f");
    mc_builder b = mc_builder_before(s.f->last, &x.diags);
    const mc_dim dims[] = {mc_dim_const(8), mc_dim_const(8)};
    mc_value *w = mc_build_weight(&b, MC_STR("w"), false, "dense", 0, mc_type_get(m, MOEC_BF16, dims, 2));
    mc_value *y = mc_build1(&b, MC_OP_LINEAR, (mc_value *[]){s.sum, w}, 2, NULL, 0);
    ck_assert_int_eq(y->def->n_operands, 5);
    ck_assert_ptr_null(mc_operand_named(y->def, "residual"));
    mc_op_set_operand(y->def, 4, s.arg);
    ck_assert_ptr_eq(mc_operand_named(y->def, "residual"), s.arg);
    ck_assert(mc_module_verify(m, &x.diags));
    mc_op_set_operand(y->def, 4, NULL);
    ck_assert_ptr_null(mc_operand(y->def, 4));
    ck_assert_ptr_null(mc_operand(y->def, 99));
    ck_assert(mc_module_verify(m, &x.diags));
}
END_TEST

START_TEST(attributes_have_defaults)
{
    small s = make_small("f");
    mc_builder b = mc_builder_before(s.f->last, &x.diags);
    const mc_named_attr eps[] = {MC_A_FLOAT("eps", 0.5)};
    mc_op *op = mc_build1(&b, MC_OP_RMSNORM, &s.sum, 1, eps, 1)->def;
    ck_assert(mc_attr_float(op, "eps") == 0.5);
    ck_assert(!mc_attr_bool(op, "plus_one"));
    ck_assert(mc_str_is(mc_attr_str(op, "round"), "after"));
    ck_assert_int_eq(mc_attr_get(op, "round")->kind, MC_ATTR_NONE);
    mc_op_set_attr(op, "round", (mc_attr){.kind = MC_ATTR_STR, .as.s = MC_STR("before")});
    ck_assert(mc_str_is(mc_attr_str(op, "round"), "before"));
    mc_op_set_attr(op, "round", (mc_attr){.kind = MC_ATTR_NONE});
    ck_assert(mc_str_is(mc_attr_str(op, "round"), "after"));
    mc_op *clamp = mc_build_unary(&b, MC_OP_CLAMP, s.sum)->def;
    ck_assert(isinf(mc_attr_float(clamp, "lo")) && mc_attr_float(clamp, "lo") < 0);
    const mc_named_attr wrong[] = {MC_A_FLOAT("epsilon", 0.5)}, kind[] = {MC_A_INT("eps", 1)};
    ck_assert_ptr_null(mc_build(&b, MC_OP_RMSNORM, &s.sum, 1, wrong, 1));
    ck_assert(mc_ir_said(&x, MC_E0404, "rmsnorm has no attribute epsilon"));
    ck_assert_ptr_null(mc_build(&b, MC_OP_RMSNORM, &s.sum, 1, kind, 1));
    ck_assert(mc_ir_said(&x, MC_E0404, "attribute eps has a value of the wrong kind"));
}
END_TEST

START_TEST(functions_are_sorted_and_removed)
{
    small last = make_small("user"), f = make_small("used"), g = make_small("deep");
    mc_builder b = mc_builder_before(last.f->last, &x.diags);
    ck_assert_ptr_nonnull(mc_build_call(&b, f.f, MC_STR("a"), &last.arg, 1));
    b = mc_builder_before(f.f->last, &x.diags);
    mc_op *call = mc_build_call(&b, g.f, MC_STR("b"), &f.arg, 1);
    ck_assert_ptr_eq(mc_result(call, 0)->type, f.arg->type);
    ck_assert(!mc_module_verify(m, &x.diags));
    ck_assert(mc_ir_said(&x, MC_E0407, "does not stand before"));
    mc_module_sort_funcs(m);
    ck_assert_ptr_eq(m->funcs, g.f);
    ck_assert_ptr_eq(g.f->next, f.f);
    ck_assert_ptr_eq(f.f->next, last.f);
    ck_assert_ptr_eq(m->last_func, last.f);
    int before = x.diags.n_errors;
    ck_assert(mc_module_verify(m, &x.diags));
    ck_assert_int_eq(x.diags.n_errors, before);
    mc_op_remove(call);
    mc_func_remove(g.f);
    ck_assert_ptr_null(mc_module_find(m, MC_STR("deep")));
    ck_assert(mc_module_verify(m, &x.diags));
    mc_func_remove(last.f);
    ck_assert_ptr_eq(m->last_func, f.f);
    ck_assert(mc_module_verify(m, &x.diags));
}
END_TEST

START_TEST(builder_refuses)
{
    small s = make_small("f");
    mc_builder b = mc_builder_before(s.f->last, &x.diags);
    const mc_dim dims[] = {mc_dim_const(3)}, many[MC_MAX_RANK + 1] = {{0}};
    ck_assert_ptr_null(mc_build_reshape(&b, s.sum, dims, 1));
    ck_assert(mc_ir_said(&x, MC_E0313, "[T, 8] has not as many elements as [3]"));
    ck_assert_ptr_null(mc_build_reshape(&b, s.sum, many, MC_MAX_RANK + 1));
    ck_assert(mc_ir_said(&x, MC_E0319, "7 axes"));
    ck_assert_ptr_null(mc_build_weight(&b, MC_STR("w"), false, "none", 0, s.sum->type));
    ck_assert_ptr_null(mc_build_binary(&b, MC_OP_ADD, s.sum, NULL));
    mc_func *open = mc_func_create(m, MC_STR("open"), (mc_span){0});
    ck_assert_ptr_null(mc_build_call(&b, open, MC_STR(""), NULL, 0));
    ck_assert(mc_ir_said(&x, MC_E0403, "@open does not end with a whole return"));
    ck_assert_ptr_eq(s.f->last->prev, s.sum->def); /* nothing was left behind */
    ck_assert(mc_build_const(&b, 2)->type == mc_type_scalar(m, MOEC_F32));
}
END_TEST

/* ---- the verifier, on modules that only code can break ---- */

static void
break_return(small s)
{
    mc_op_remove(s.f->last);
}

static void
break_early_return(small s)
{
    mc_builder b = mc_builder_before(s.sum->def, &x.diags);
    mc_build_return(&b, &s.silu, 1);
}

static void
break_id(small s)
{
    s.silu->id = s.arg->id;
}

static void
break_foreign_value(small s)
{
    mc_func *other = mc_func_create(m, MC_STR("other"), (mc_span){0});
    mc_value *foreign = mc_func_add_formal(other, s.arg->type, MC_STR("y"));
    mc_op_set_operand(s.sum->def, 0, foreign);
}

static void
break_type(small s)
{
    s.silu->type = mc_type_with_dtype(m, s.silu->type, MOEC_BF16);
}

static void
break_use_list(small s)
{
    s.silu->uses = NULL;
}

static void
break_use_loop(small s)
{
    s.arg->uses->next = s.arg->uses;
}

static void
break_op_list(small s)
{
    s.sum->def->prev = NULL;
}

static void
break_op_loop(small s)
{
    s.f->last->next = s.f->first;
}

static void
break_func_name(small s)
{
    mc_func_create(m, s.f->name, (mc_span){0});
}

static void
break_name(small s)
{
    s.f->name = MC_STR("two words");
}

static void
break_symbol(small s)
{
    (void)s;
    m->syms[0].hi = -1;
}

static void
break_removed_callee(small s)
{
    small callee = make_small("callee");
    mc_module_sort_funcs(m);
    mc_builder b = mc_builder_before(s.f->last, &x.diags);
    mc_build_call(&b, callee.f, MC_STR(""), &s.arg, 1);
    mc_module_sort_funcs(m);
    mc_func_remove(callee.f);
}

static const struct {
    void (*edit)(small s);
    const char *message;
    mc_code code;
} broken[] = {
    {break_return, "the last op is not return", MC_E0407},
    {break_early_return, "ops follow the end of the function", MC_E0407},
    {break_id, "an id that is taken", MC_E0407},
    {break_foreign_value, "not defined before its use in this function", MC_E0407},
    {break_type, "result 1 is stored as bf16[T, 8], but is f32[T, 8]", MC_E0406},
    {break_use_list, "missing from the list of its value's uses", MC_E0407},
    {break_use_loop, "an argument is broken", MC_E0407},
    {break_op_list, "the list of ops is broken", MC_E0407},
    {break_op_loop, "the list of ops is broken", MC_E0407},
    {break_func_name, "two functions have this name", MC_E0407},
    {break_name, "its name is not a name", MC_E0407},
    {break_symbol, "dim T", MC_E0407},
    {break_removed_callee, "does not stand before this one", MC_E0407},
};

START_TEST(verifier_refuses)
{
    broken[_i].edit(make_small("f"));
    ck_assert(!mc_module_verify(m, &x.diags));
    ck_assert_msg(mc_ir_said(&x, broken[_i].code, broken[_i].message), "said instead:\n%s", mc_ir_messages(&x).data);
}
END_TEST

START_TEST(verifier_shows_the_op)
{
    small s = make_small("f");
    break_type(s);
    mc_module_verify(m, &x.diags);
    ck_assert_str_eq(mc_ir_messages(&x).data, "error[E0406]: silu: result 1 is stored as bf16[T, 8], but is f32[T, 8]\n"
                                              "note: in @f: %0 = silu %x : bf16[T, 8]\n"
                                              "help: run 'moec explain E0406'\n");
}
END_TEST

/* ---- names ---- */

START_TEST(names_are_unique_when_printed)
{
    small s = make_small("f");
    s.silu->name = MC_STR("x");
    s.sum->name = MC_STR("x.2");
    ck_assert_str_eq(mc_ir_print(&x, m).data, "moir 1 stage=tensor\n"
                                              "dim T\n"
                                              "\n"
                                              "func @f(%x: f32[T, 8]) -> (f32[T, 8]) {\n"
                                              "  %x.2 = silu %x : f32[T, 8]\n"
                                              "  %x.2.2 = add %x.2, %x : f32[T, 8]\n"
                                              "  return %x.2.2\n"
                                              "}\n");
    s.silu->name = MC_STR("not a name");
    s.sum->name = MC_STR("9");
    mc_buf line = {0};
    mc_op_print(s.sum->def, &line);
    ck_assert_str_eq(line.data, "%1 = add %0, %x : f32[T, 8]");
    mc_buf_fini(&line);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("ir");
    TCase *all = tcase_create("ir");
    tcase_add_checked_fixture(all, setup, teardown);
    tcase_set_timeout(all, 60);
    tcase_add_test(all, dims_are_normal);
    tcase_add_test(all, dims_multiply);
    tcase_add_test(all, dims_divide);
    tcase_add_test(all, dims_agree_with_numbers);
    tcase_add_test(all, dims_print);
    tcase_add_test(all, types_are_interned);
    tcase_add_test(all, symbols_are_found_or_added);
    tcase_add_test(all, metas_keep_their_order);
    tcase_add_test(all, op_table_is_whole);
    tcase_add_test(all, uses_follow_edits);
    tcase_add_test(all, a_loop_may_remove_where_it_stands);
    tcase_add_test(all, ops_move);
    tcase_add_test(all, absent_operands_have_a_place);
    tcase_add_test(all, attributes_have_defaults);
    tcase_add_test(all, functions_are_sorted_and_removed);
    tcase_add_test(all, builder_refuses);
    tcase_add_loop_test(all, verifier_refuses, 0, (int)(sizeof broken / sizeof broken[0]));
    tcase_add_test(all, verifier_shows_the_op);
    tcase_add_test(all, names_are_unique_when_printed);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
