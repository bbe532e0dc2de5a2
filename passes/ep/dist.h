/* dist: what the files of plan-ep share. A function is rewritten in one sweep in order of execution. Every value is on
 * a side: the tokens' (this rank's) or the experts' (of a site: rows that arrived here, or an own share of experts).
 *
 *   dist_function.c   the sweep: who reads what, and what that makes of the reader
 *   dist_site.c       one moe.dispatch: its ep.route, and rows going to and fro
 *   dist_gather.c     what reads all tokens
 *   dist_overlap.c    what can be computed while rows travel */
#ifndef MC_PASSES_EP_DIST_H
#define MC_PASSES_EP_DIST_H

#include "ir/build.h"
#include "passes/ep/mesh.h"
#include "passes/pass.h"

typedef struct mc_site mc_site;

typedef struct mc_dist {
    mc_pass *pass;
    mc_module *module;
    mc_ep_mesh mesh;
    const struct mc_ep_plan *plan; /* which way rows go; NULL: one rank */
    int rank_sym;                  /* axis 0 of what is shared out among ranks */
    int all_sym;                   /* the same, of all ranks */
    int first_sym;                 /* symbols from here on are plan-ep's */
    MC_VEC(mc_site *) sites;       /* of the function being rewritten */
    mc_site **side;                /* by id: the site on whose experts' side the value is; NULL: the tokens' side */
    uint32_t n_side;
    mc_map gathered; /* of the function: id of a value -> its ep.gather */
} mc_dist;

/* A moe.dispatch of the function being rewritten. */
struct mc_site {
    mc_dist *dist;
    mc_op *dispatch, *route;
    int number;            /* among its function's: which symbols it sets */
    mc_dim assignments;    /* A */
    mc_dim received, rows; /* Y, X */
    int64_t experts, share;
    const char *way;                  /* how its rows travel */
    moec_dtype wire_there, wire_back; /* and as what, in tree order */
    mc_map sent;                      /* "opcode id" -> what has arrived */
};

/* Rewrites one function; false after an error. */
bool mc_dist_function(mc_dist *d, mc_func *f);

/* E0803: why this program cannot be shared out. Always false. */
bool mc_dist_refuse(const mc_dist *d, const mc_op *op, const char *format, ...) MOEC_PRINTF(3, 4);
/* Whether plan-ep's symbols count its rows. */
bool mc_dist_received(const mc_dist *d, const mc_type *t);
mc_site *mc_dist_side(const mc_dist *d, const mc_value *v);
void mc_dist_set_side(mc_dist *d, const mc_value *v, mc_site *side);
/* op again, before itself, with other operands and, where its types are declared, those types. NULL after an error. */
mc_op *mc_dist_remake(mc_dist *d, mc_op *op, mc_value *const *operands, const mc_type *const *types);
/* A symbol of plan-ep's, made when it is new; -1 after an error. */
int mc_dist_symbol(mc_dist *d, const mc_op *op, const char *format, int number);

/* ---- sites ---- */

bool mc_site_open(mc_dist *d, mc_op *dispatch, int number, mc_site *out);
/* t with assignments replaced by received ones, or all experts by a rank's. */
const mc_type *mc_site_type(const mc_site *s, const mc_type *t);
/* All insert before `before`; NULL after an error. Each value travels once. */
mc_value *mc_site_send(mc_site *s, mc_op *before, mc_value *x);                              /* tokens -> X */
mc_value *mc_site_send_rows(mc_site *s, mc_op *before, mc_value *v);                         /* A -> Y */
mc_value *mc_site_return(mc_site *s, mc_op *before, mc_value *y, const mc_type *type);       /* Y -> A */
mc_value *mc_site_reduce(mc_site *s, mc_op *before, mc_value *y, const mc_type *type);       /* X -> tokens */
mc_value *mc_site_merge(mc_site *s, mc_op *before, mc_value *y, mc_value **out_all_offsets); /* Y -> of all replicas */

/* ---- what reads all tokens ---- */

/* Rewrites op when it is one of those. *out_done: it was, and op is gone. */
bool mc_dist_gather_op(mc_dist *d, mc_op *op, bool *out_done);

/* ---- overlap ---- */

void mc_dist_overlap(mc_dist *d, mc_func *f);

#endif
