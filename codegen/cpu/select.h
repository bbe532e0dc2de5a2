/* select: which function turns which op into launches. Each family's file holds both the choice of the kernel and
 * the kernel itself, because the order of its arguments is an agreement between the two. */
#ifndef MC_CODEGEN_CPU_SELECT_H
#define MC_CODEGEN_CPU_SELECT_H

#include "codegen/plan/plan.h"

extern const mc_plan_backend mc_cpu_backend;
/* Whether the backend has code for this op at all, for tables of coverage. */
bool mc_cpu_supports(mc_opcode opcode);

mc_plan_select_fn mc_cpu_select_matmul;       /* matmul.c: linear, gated_linear, grouped_matmul, moe.ffn_* */
mc_plan_select_fn mc_cpu_select_matmul_train; /* matmul_train.c: linear_dx, linear_dw, grouped_dx, grouped_dw */
mc_plan_select_fn mc_cpu_select_head_linear;  /* heads.c */
mc_plan_select_fn mc_cpu_select_embed;        /* embed.c */
mc_plan_select_fn mc_cpu_select_embed_dw;
mc_plan_select_fn mc_cpu_select_elementwise; /* elementwise.c */
mc_plan_select_fn mc_cpu_select_cast;
mc_plan_select_fn mc_cpu_select_norm; /* norm.c: rmsnorm, layernorm, l2norm */
mc_plan_select_fn mc_cpu_select_softmax;
mc_plan_select_fn mc_cpu_select_renorm;
mc_plan_select_fn mc_cpu_select_rope; /* rope.c */
mc_plan_select_fn mc_cpu_select_position;
mc_plan_select_fn mc_cpu_select_attention;      /* attention.c: sdpa, latent_sdpa */
mc_plan_select_fn mc_cpu_select_attention_grad; /* grad_attention.c */
mc_plan_select_fn mc_cpu_select_top_keys;       /* top_keys.c */
mc_plan_select_fn mc_cpu_select_move;           /* move.c: copy, split, concat, slice, expand, tile, transpose */
mc_plan_select_fn mc_cpu_select_cache;          /* state.c */
mc_plan_select_fn mc_cpu_select_conv1d;
mc_plan_select_fn mc_cpu_select_selective_scan; /* scan.c */
mc_plan_select_fn mc_cpu_select_delta_scan;
mc_plan_select_fn mc_cpu_select_route_groups; /* route.c */
mc_plan_select_fn mc_cpu_select_route_top;
mc_plan_select_fn mc_cpu_select_route_take;
mc_plan_select_fn mc_cpu_select_route_lookup;
mc_plan_select_fn mc_cpu_select_route_sparsemixer; /* route_rare.c */
mc_plan_select_fn mc_cpu_select_route_choose;
mc_plan_select_fn mc_cpu_select_route_hash;
mc_plan_select_fn mc_cpu_select_dispatch; /* dispatch.c */
mc_plan_select_fn mc_cpu_select_capacity;
mc_plan_select_fn mc_cpu_select_permute;
mc_plan_select_fn mc_cpu_select_unpermute;
mc_plan_select_fn mc_cpu_select_identity;
mc_plan_select_fn mc_cpu_select_route_scatter; /* grad_route.c */
mc_plan_select_fn mc_cpu_select_route_mask;
mc_plan_select_fn mc_cpu_select_load; /* grad_loss.c */
mc_plan_select_fn mc_cpu_select_balance;
mc_plan_select_fn mc_cpu_select_balance_grad;
mc_plan_select_fn mc_cpu_select_z_loss;
mc_plan_select_fn mc_cpu_select_z_loss_grad;
mc_plan_select_fn mc_cpu_select_flat; /* grad_elementwise.c: glu, glu_grad, unary_grad, fill */
mc_plan_select_fn mc_cpu_select_accumulate;
mc_plan_select_fn mc_cpu_select_moe_glu_grad; /* grad_rows.c */
mc_plan_select_fn mc_cpu_select_norm_grad;
mc_plan_select_fn mc_cpu_select_softmax_grad;
mc_plan_select_fn mc_cpu_select_renorm_grad;
mc_plan_select_fn mc_cpu_select_row_dot;
mc_plan_select_fn mc_cpu_select_sum_to; /* grad_shape.c */
mc_plan_select_fn mc_cpu_select_unslice;

#endif
