/* abi: the contract between generated code and the runtime. Standalone: includes nothing of ours but <stdint.h>.
 *
 * An artefact exports one constant, `const struct moec_abi_model`, reached through moec_abi_query() (see the end).
 * It holds everything about a compiled model but its weights: kernels, the plan that runs them, and tables that
 * describe inputs, outputs, weights, states and memory. The runtime walks the plan; kernels do the arithmetic.
 *
 *   model ── funcs[] ── launches[]: one kernel or call each, in order
 *                       refs:  where each tensor argument lies (slot of the frame, argument, weight, state)
 *                       exprs: integers from run-time dimensions
 *
 * Every thread of the pool walks the same plan; kernels split their work by (thread, n_threads); a barrier follows each
 * launch unless it says otherwise. Changing any struct here means a new MOEC_ABI_VERSION.
 */
#ifndef MOEC_RUNTIME_ABI_H
#define MOEC_RUNTIME_ABI_H

#include <stdint.h>

#define MOEC_ABI_MAGIC 0x43454F4Du /* "MOEC" */
#define MOEC_ABI_VERSION 4u

/* mul * (product of up to three symbols) + add. Unused syms entries are 0xFF. */
typedef struct moec_abi_expr {
    int64_t mul, add;
    uint8_t syms[8];
} moec_abi_expr;

/* A run-time dimension. kind: 0 ordinary; 1 new positions (S); 2 cached + new positions (C), which the session sets;
 * 3 nothing depends on it any more; 4 set by a comm launch during the walk, at most exprs[bound] of that step (of the
 * rank that has the most, when ranks differ). */
typedef struct moec_abi_sym {
    const char *name;
    int64_t lo, hi; /* hi 0: unbounded */
    uint32_t kind;
    uint32_t bound; /* kind 4 */
} moec_abi_sym;

enum { MOEC_ABI_MAX_RANK = 6 };

typedef struct moec_abi_tensor { /* an input or output of the model */
    const char *name;
    uint32_t dtype; /* moec_dtype */
    uint32_t rank;
    moec_abi_expr dims[MOEC_ABI_MAX_RANK];
    int64_t limit; /* inputs of ids: values must be in 0..limit-1; 0: no check. Outputs: choices among so many experts */
} moec_abi_tensor;

/* How a packed weight lies in the weight file (docs/ABI.md has pictures).
 *   ROWS        row-major, the tensor as it is, in `dtype`
 *   PANELS      [n_groups,] ceil(N/nr) panels of [K][nr], zero padded; the tensor is [n_groups,] N x K
 *   PAIR_PANELS as PANELS over two tensors gate and up of N x K each: every panel holds nr/2 gate columns, then the
 *               nr/2 up columns of the same indices; ceil(N / (nr/2)) panels
 *   GRAD        not in the file: the caller's f32 gradient of the parameter `path`, row-major; its address may be null
 *               (nr 1: it is always null, the parameter is frozen)
 * FP8 weights carry f32 scales in a weight of their own. Models for training have ROWS and GRAD only, and read the
 * caller's parameters; a parameter may stand in the table several times. */
typedef enum moec_abi_layout {
    MOEC_ABI_ROWS = 0,
    MOEC_ABI_PANELS = 1,
    MOEC_ABI_PAIR_PANELS = 2,
    MOEC_ABI_GRAD = 3
} moec_abi_layout;

typedef struct moec_abi_weight {
    const char *path;  /* full path in the model, e.g. layers.3.self_attn.q_proj.weight */
    const char *path2; /* the up tensor of a pair, else NULL */
    const char *role;
    uint32_t dtype; /* as stored in the packed file */
    uint32_t layout;
    uint32_t nr;
    uint32_t rank;   /* of one source tensor (without packing) */
    int64_t dims[4]; /* of one source tensor: [E,] N, K or a vector */
    /* For f32 scale tensors of FP8 weights: the weight they belong to and the block; else NULL and 0. */
    const char *scale_of;
    int64_t block[2];
    const char *init; /* of a parameter in training: "normal(0.02)"; else "" */
    /* Other than 0: the parameter has so many experts along axis 0, of which a rank holds dims[0] (moec_abi_ep). */
    int64_t experts;
} moec_abi_weight;

/* Memory that lives across steps: a KV cache, a convolution's history, a scan's state. Zeroed by a session's reset.
 * kind 0 cache: row_bytes for each (sequence, position); layout [B][capacity positions][row_bytes].
 * kind 1 fixed: bytes for each sequence. */
typedef struct moec_abi_state {
    const char *name;
    uint32_t kind;
    uint32_t reserved;
    int64_t bytes;
} moec_abi_state;

typedef enum moec_abi_place {
    MOEC_ABI_NULL = 0, /* the null pointer: an absent optional operand */
    MOEC_ABI_SLOT = 1,
    MOEC_ABI_ARG = 2,    /* the function's formals, then its results, in order */
    MOEC_ABI_WEIGHT = 3, /* index + the call's weight_base */
    MOEC_ABI_STATE = 4   /* index + the call's state_base */
} moec_abi_place;

typedef struct moec_abi_ref {
    uint32_t place; /* moec_abi_place */
    uint32_t index;
    moec_abi_expr offset; /* bytes added to the place's address */
} moec_abi_ref;

enum { MOEC_ABI_MAX_PTRS = 16, MOEC_ABI_MAX_INTS = 24, MOEC_ABI_MAX_FLOATS = 12 };

/* What a kernel receives. The meaning of each entry belongs to the kernel (codegen/cpu says it, kernel by kernel). */
typedef struct moec_kernel_args {
    void *ptr[MOEC_ABI_MAX_PTRS];
    int64_t i[MOEC_ABI_MAX_INTS];
    double f[MOEC_ABI_MAX_FLOATS];
    int64_t thread, n_threads;
    int64_t past;      /* positions already cached */
    int64_t cache_cap; /* positions that fit in each cache state */
    void *scratch;     /* this thread's own, model->scratch_bytes of it, 64-byte aligned */
} moec_kernel_args;

typedef void moec_kernel_fn(const moec_kernel_args *args);

enum { MOEC_LAUNCH_KERNEL = 0, MOEC_LAUNCH_CALL = 1, MOEC_LAUNCH_COMM = 2 };
enum { MOEC_LAUNCH_NO_BARRIER = 1 }; /* flags */

typedef struct moec_abi_launch {
    uint32_t kind, flags;
    uint32_t target; /* kernel index, function index, or moec_comm_op */
    uint32_t n_refs, n_ints, n_floats;
    uint32_t first_ref, first_int, first_float; /* into model->refs, exprs, floats */
    uint32_t weight_base, state_base;           /* calls: added to the callee's indices */
    uint32_t label; /* offset in model->strings: what this launch is, for profiles and messages */
} moec_abi_launch;

typedef struct moec_abi_slot { /* size in bytes = the greatest of these exprs, rounded up to 64 */
    uint32_t first_expr, n_exprs;
} moec_abi_slot;

typedef struct moec_abi_func {
    const char *name;
    uint32_t n_formals, n_results;
    uint32_t first_launch, n_launches;
    uint32_t first_slot, n_slots;
} moec_abi_func;

/* ---- several ranks --------------------------------------------------------------------------------------------
 * A model for expert parallelism runs on n_ranks * n_replicas ranks; rank r is number r % n_ranks of replica
 * r / n_ranks. A replica's ranks share the experts: number g holds the slots g * L .. g * L + L - 1. A launch of kind
 * COMM is done by one thread while the others wait. Its arguments (runtime/ep/ep.h says what they mean), LISTS being the
 * six arrays of a route (offsets, rows, order, sent, sent_tokens, counts):
 *
 *   op           ptr                                      i
 *   ROUTE        offsets, tokens, slots or null, LISTS    way, experts, slots of a rank, tokens, assignments, symbol of X, symbol of Y
 *   SEND         x, LISTS, out                            way, width, dtype, wire
 *   SEND_ROWS    v, LISTS, out                            0, width, dtype, wire
 *   RETURN_ROWS  y, LISTS, out                            0, width, dtype, wire
 *   REDUCE       y, LISTS, out                            way, width, dtype, wire, tokens
 *   WAIT         (of the SEND .. REDUCE before it; those only begin)
 *   GATHER       x, out, begin                            value of rank_sym, bytes for each, symbol of all ranks' sum
 *   OWN          x, begin, out                            value of rank_sym, bytes for each
 *   MERGE        x, offsets, out, out_offsets             slots of a rank, bytes of a row, symbol of the merged rows
 *
 * GATHER is over all ranks, MERGE over the replicas of a number, the others over the ranks of a replica. */
typedef enum moec_comm_op {
    MOEC_COMM_ROUTE = 0,
    MOEC_COMM_SEND = 1,
    MOEC_COMM_SEND_ROWS = 2,
    MOEC_COMM_RETURN_ROWS = 3,
    MOEC_COMM_REDUCE = 4,
    MOEC_COMM_WAIT = 5,
    MOEC_COMM_GATHER = 6,
    MOEC_COMM_OWN = 7,
    MOEC_COMM_MERGE = 8
} moec_comm_op;

enum { MOEC_COMM_N_OPS = 9 };

typedef struct moec_abi_ep {
    uint32_t n_ranks, n_replicas, per_node;
    uint32_t round_robin; /* slot s of number g holds expert s * n_ranks + g; else g * L + s */
    uint32_t rank_sym;    /* the symbol of axis 0 of what is shared out among ranks (sequences, or tokens) */
    uint32_t reduced;     /* gradients of a step are this rank's part: moec_train_reduce adds them up */
    const char *plan;     /* its text, as `moec plan` prints it */
} moec_abi_ep;

/* ---- code for GPUs --------------------------------------------------------------------------------------------
 * A model for a GPU has `gpu` and no `kernels`. Its launches, refs, slots and expressions mean what they mean for a
 * CPU; a kernel is a CUDA function that takes a moec_gpu_args by value, and its moec_gpu_maps when it has any. */

typedef struct moec_gpu_args {
    void *ptr[MOEC_ABI_MAX_PTRS];
    int64_t i[MOEC_ABI_MAX_INTS]; /* never depends on a dimension of kind 2: kernels add *past themselves */
    double f[MOEC_ABI_MAX_FLOATS];
    const int64_t *past; /* device memory: positions already cached; null: 0 */
    int64_t cache_cap;   /* positions that fit in each cache state */
    void *scratch;       /* at least what the op asked for, 256-byte aligned; as its last launch left it */
} moec_gpu_args;

/* A grid has ceil(i[from] / div) + add blocks along an axis; with from = MOEC_ABI_GRID_ONE just `add`. A launch whose
 * grid is empty is left out. */
enum { MOEC_ABI_GRID_ONE = 0xFF, MOEC_ABI_MAX_MAPS = 4 };

typedef struct moec_abi_grid_axis {
    uint32_t from, div, add, reserved;
} moec_abi_grid_axis;

/* How the copy engine sees the dense row-major tensor at ptr[ptr] (cuTensorMapEncodeTiled). Axes from the innermost:
 * i[dims[0]] elements, i[dims[1]] rows, i[dims[2]] matrices; box: elements of each axis that one copy moves. */
typedef struct moec_abi_tensor_map {
    uint32_t ptr, dtype, rank, swizzle; /* swizzle: 0, 32, 64 or 128 bytes */
    uint32_t dims[4], box[4];
} moec_abi_tensor_map;

/* A kernel for one architecture. */
typedef struct moec_abi_gpu_code {
    uint32_t kernel;                         /* index into kernel_names, which is the function's name too */
    uint32_t arch;                           /* 80, 89, 90 (sm_90a), 100 (sm_100a) */
    uint32_t threads, shared_bytes, cluster; /* of a block; dynamic shared memory; blocks of a cluster, 1: none */
    uint32_t per_sm; /* other than 0: at most this many blocks along x for each multiprocessor */
    uint32_t n_maps, reserved;
    moec_abi_grid_axis grid[3];
    moec_abi_tensor_map maps[MOEC_ABI_MAX_MAPS];
    const void *cubin;
    uint64_t n_bytes;
} moec_abi_gpu_code;

typedef struct moec_abi_gpu {
    const char *archs; /* "sm_80,sm_90a" */
    const moec_abi_gpu_code *codes;
    uint32_t n_codes;
    uint32_t first_scratch, n_scratch; /* into exprs: scratch memory is the greatest of them, in bytes */
    uint32_t reserved;
} moec_abi_gpu;

typedef struct moec_abi_model {
    uint32_t magic, version; /* MOEC_ABI_MAGIC, MOEC_ABI_VERSION: checked before anything else is read */
    const char *name;
    const char *compiler;  /* "moec 0.1.0, LLVM 22.1" */
    const char *target;    /* triple */
    const char *cpu;       /* what it was compiled for, e.g. x86-64-v3 */
    const char *features;  /* comma-separated names the CPU must have, e.g. "avx2,fma,f16c,bmi2" */
    uint64_t hash;         /* of the plan text and the target: identifies the artefact */
    uint64_t weights_hash; /* of the weight table and binding rules: must equal the packed file's */
    const char *rules;     /* the weights block as .moe text, for binding a checkpoint */
    const char *meta;      /* JSON object: params, fusion report, vocab size ... for --info */

    const moec_abi_sym *syms;
    const moec_abi_tensor *inputs, *outputs;
    const moec_abi_weight *weights;
    const moec_abi_state *states;
    const moec_abi_func *funcs;
    const moec_abi_launch *launches;
    const moec_abi_slot *slots;
    const moec_abi_ref *refs;
    const moec_abi_expr *exprs;
    const double *floats;
    moec_kernel_fn *const *kernels;
    const char *const *kernel_names;
    const char *strings;

    uint32_t n_syms, n_inputs, n_outputs, n_weights, n_states, n_funcs, n_launches, n_slots, n_refs, n_exprs, n_floats,
        n_kernels;
    uint32_t entry;         /* index of the model function */
    uint32_t batch_sym;     /* symbol of axis 0 of caches (B), or 0xFFFFFFFF */
    uint64_t scratch_bytes; /* per thread */

    /* Training (docs/decisions/0006): absent (backward is 0xFFFFFFFF, the counts 0) in a model for inference.
     * entry    formals: inputs                              results: outputs, then saved
     * backward formals: inputs, saved, cotangents           results: input_grads
     * A cotangent belongs to output `index`, an input gradient to input `index`. */
    const moec_abi_tensor *saved;
    const uint32_t *cotangents, *input_grads;
    uint32_t backward, backward_weight_base;
    uint32_t n_saved, n_cotangents, n_input_grads, reserved;

    const moec_abi_gpu *gpu; /* NULL: a model for a CPU */
    const moec_abi_ep *ep;   /* NULL: a model for one rank */
} moec_abi_model;

/* Exported by every artefact under the name moec_abi_query_<name>: NULL when `version` is not one it can serve. */
typedef const moec_abi_model *moec_abi_query_fn(uint32_t version);

#endif
