/* infer_impl: what the ir/infer*.c files share. For ir/ only.
 *
 * An inference function checks operands and attributes and gives the result types. It may rely on what mc_infer_run
 * has checked: operand count and classes, and the presence and kind of attributes. */
#ifndef MC_IR_INFER_IMPL_H
#define MC_IR_INFER_IMPL_H

#include "ir/infer.h"

#define MC_OP(ID, text, stages, traits, infer, operands, results, attrs, doc) mc_infer_fn mc_infer_##infer;
#include "ir/ops.def"
#undef MC_OP

/* The attribute or its default, from an array as in mc_op. */
mc_attr mc_attr_at(mc_opcode opcode, const mc_attr *attrs, const char *name, mc_attr_kind kind);
int64_t mc_in_int(const mc_infer *in, const char *name);
double mc_in_float(const mc_infer *in, const char *name);
mc_str mc_in_str(const mc_infer *in, const char *name);
mc_func *mc_in_func(const mc_infer *in, const char *name);

/* The type of operand i; NULL when absent. */
const mc_type *mc_in_type(const mc_infer *in, int i);
bool mc_in_give(mc_infer *in, const mc_type *type); /* true */
bool mc_in_give_dims(mc_infer *in, moec_dtype dtype, const mc_dim *dims, int rank);
/* The element type that attribute `to` says; `otherwise` when it is absent. */
moec_dtype mc_in_to(const mc_infer *in, moec_dtype otherwise);
/* The type, with that element type. Refuses a `to` that is no float. */
bool mc_in_give_to(mc_infer *in, const mc_type *type);

/* Reports "linear: <text>" with the operand types as a note; false. */
bool mc_in_refuse(mc_infer *in, mc_code code, const char *format, ...) MOEC_PRINTF(3, 4);
const char *mc_in_dim_text(const mc_infer *in, mc_dim d);                       /* in the arena of the diagnostics */
const char *mc_in_shape_text(const mc_infer *in, const mc_dim *dims, int rank); /* "[B, S, 64]" */

/* Conditions. True when they hold; otherwise they refuse. Absent operands satisfy all of them. */
bool mc_in_want_rank(mc_infer *in, int i, int least, int most);
bool mc_in_want_shape(mc_infer *in, int i, const mc_dim *dims, int rank);
bool mc_in_want_vector(mc_infer *in, int i, mc_dim n);
bool mc_in_want_choice(mc_infer *in, const char *attr, const char *const *choices); /* choices end with NULL */
bool mc_in_want_float(mc_infer *in, const char *attr, double least, bool or_equal);
bool mc_in_want_int(mc_infer *in, const char *attr, int64_t least, int64_t most);
/* Operands i (weights) and j (ids) have the same shape [..., k], with the leading axes of `lead` when not NULL. */
bool mc_in_want_choices_of(mc_infer *in, int i, int j, const mc_type *lead);

/* Axis `axis` counted from the end when negative; -1 and a refusal when out of range. */
int mc_in_want_axis(mc_infer *in, int64_t axis, int rank);
/* The only results of a function; false and a refusal when it does not end with return. */
bool mc_in_func_results(mc_infer *in, const mc_func *f, const mc_op **out_return);
/* Shape [ceil(o / 128), ceil(i / 128)] of the scales of an FP8 weight, after an optional leading axis of w; checks
 * that w is FP8. */
bool mc_in_want_scale(mc_infer *in, int i, const mc_type *w);
bool mc_in_packed_pair(const mc_infer *in, int gate, int up);

extern const char *const mc_in_act_names[]; /* of gated_linear and moe.ffn_up; ends with NULL */

#endif
