/* moec mem: what a step of training takes for each policy, from the plan, before anything runs. */
#include "driver/command.h"
#include "driver/progress.h"
#include "driver/train/train_memory.h"
#include "driver/train/trainer.h"
#include "runtime/host_cpu.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAVE, RECOMPUTE, N_POLICIES, MAX_DIMS = 8 };
static const char *const policy_names[N_POLICIES] = {"save", "recompute"};

/* Tensors of one name, with numbers in it as *: equal layers are one line. */
typedef struct kept_line {
    mc_str name, shape;
    size_t n[N_POLICIES];       /* tensors */
    uint64_t bytes[N_POLICIES]; /* of all of them */
    uint64_t rows;              /* of one: the product of all dims but the last */
} kept_line;

/* Experts, equal layers together: what x, G and U of the tokens take. */
typedef struct expert_line {
    mc_str scope;
    size_t n;
    uint64_t experts, k, d, f, n_hidden; /* n_hidden: 2 with a gate, else 1 */
} expert_line;

typedef struct account {
    mc_arena *arena;
    mc_str model;
    char names[MAX_DIMS][32];
    moec_limit dims[MAX_DIMS];
    size_t n_dims;
    uint64_t n_tokens;
    uint32_t n_threads;
    mc_train_memory memory[N_POLICIES];
    MC_VEC(kept_line) kept;
    MC_VEC(expert_line) experts;
} account;

/* ---- dimensions ---- */

/* One run-time dimension of the first input counts tokens; two are sequences and their length. */
static moec_status
choose_dims(account *a, const moec_model *model, const int64_t given[3], mc_fault *fault)
{
    moec_tensor_info info = {0};
    int64_t tokens = given[0], batch = given[1], length = given[2];
    a->n_dims = 0;
    if (moec_model_n_inputs(model) == 1 && moec_model_input(model, 0, &info) == MOEC_OK)
        for (int axis = 0; axis < (int)info.rank && a->n_dims < MAX_DIMS; axis++) {
            mc_train_dim_name(model, axis, a->names[a->n_dims]);
            if (a->names[a->n_dims][0]) a->dims[a->n_dims].name = a->names[a->n_dims], a->n_dims++;
        }
    if (a->n_dims == 0 || a->n_dims > 2)
        return mc_fail(
            fault, MOEC_ERR_UNSUPPORTED,
            "moec mem knows models with one input of [B, S, ..] or [T, ..]; for others ask moec_train_query");
    bool two = a->n_dims == 2;
    if (!batch) batch = two && !tokens ? 8 : 1;
    if (!length) length = tokens ? tokens : two ? 256 : 2048;
    a->dims[a->n_dims - 1].max = two ? length : batch * length;
    if (two) a->dims[0].max = batch;
    a->n_tokens = (uint64_t)batch * (uint64_t)length;
    return MOEC_OK;
}

/* ---- what forward keeps ---- */

/* "[2*B*S, 3584]" for the dims of the account. *rows: without the last axis. */
static uint64_t
elements(const account *a, const char *shape, uint64_t *rows)
{
    uint64_t n = 1, last = 1;
    *rows = 1;
    for (const char *p = shape; *p; p++) {
        if (*p == ',') {
            *rows *= last;
            last = 1;
        }
        if (!isalnum((unsigned char)*p) && *p != '_') continue;
        size_t len = strspn(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
        uint64_t value = isdigit((unsigned char)*p) ? strtoull(p, NULL, 10) : 1;
        for (size_t i = 0; i < a->n_dims; i++)
            if (strlen(a->names[i]) == len && strncmp(a->names[i], p, len) == 0) value = (uint64_t)a->dims[i].max;
        n *= value;
        last *= value;
        p += len - 1;
    }
    return n;
}

static kept_line *
line_of(account *a, mc_str name, mc_str shape)
{
    for (size_t i = 0; i < a->kept.n; i++)
        if (mc_str_eq(a->kept.items[i].name, name) && mc_str_eq(a->kept.items[i].shape, shape))
            return &a->kept.items[i];
    kept_line line = {.name = name, .shape = mc_str_dup(a->arena, shape)};
    mc_vec_push(a->arena, &a->kept, line);
    return &a->kept.items[a->kept.n - 1];
}

/* Values between layers have a number only: "saved12". */
static bool
is_named(const char *name)
{
    return strncmp(name, "saved", 5) != 0 || strspn(name + 5, "0123456789") != strlen(name + 5);
}

static void
add_kept(account *a, const moec_model *model, int policy)
{
    for (size_t i = 0; i < moec_train_n_saved(model); i++) {
        moec_saved_info info;
        uint64_t rows;
        if (moec_train_saved(model, i, &info) != MOEC_OK) continue;
        mc_str name = is_named(info.name) ? mc_command_fold(a->arena, mc_str_of(info.name)) : MC_STR("between layers");
        kept_line *line = line_of(a, name, mc_str_of(info.shape));
        line->n[policy]++;
        line->bytes[policy] += mc_train_rounded(elements(a, info.shape, &rows) * moec_dtype_bytes(info.dtype));
        line->rows = rows;
    }
}

/* ---- experts ---- */

static const mc_train_param *
projection(const account *a, const mc_train_params *params, const char *scope, const char *name)
{
    const char *dot = *scope ? "." : "";
    mc_str path = mc_strf(a->arena, "%s%sexperts.%s.weight", scope, dot, name);
    const mc_train_param *p = mc_train_params_find(params, path.data);
    return p && p->info.rank == 3 ? p : NULL;
}

/* How many experts a token went to: the rows of the products, against the tokens. */
static uint64_t
choices(const account *a, const char *path)
{
    mc_str name = mc_command_fold(a->arena, mc_strf(a->arena, "%s.grouped_matmul", path));
    for (size_t i = 0; i < a->kept.n; i++)
        if (mc_str_eq(a->kept.items[i].name, name)) return a->kept.items[i].rows / a->n_tokens;
    return 0;
}

static void
add_experts(account *a, const mc_train_params *params, const mc_train_routes *routes)
{
    for (size_t i = 0; i < routes->n_loads; i++) {
        const char *scope = routes->loads[i].scope;
        const mc_train_param *up = projection(a, params, scope, "up_proj");
        if (!up) continue;
        expert_line line = {.scope = mc_command_fold(a->arena, mc_str_of(scope)), .n = 1};
        line.experts = (uint64_t)up->info.dims[0];
        line.f = (uint64_t)up->info.dims[1];
        line.d = (uint64_t)up->info.dims[2];
        line.n_hidden = projection(a, params, scope, "gate_proj") ? 2 : 1;
        line.k = choices(a, up->info.path);
        expert_line *last = a->experts.n ? &a->experts.items[a->experts.n - 1] : NULL;
        if (last && mc_str_eq(last->scope, line.scope) && last->f == line.f && last->k == line.k)
            last->n++;
        else if (line.k)
            mc_vec_push(a->arena, &a->experts, line);
    }
}

/* ---- both policies ---- */

static moec_status
add_policy(account *a, const moec_model *model, int policy, const int64_t given[3], mc_fault *fault)
{
    mc_train_params params;
    mc_train_routes routes = {0};
    mc_train_settings settings;
    moec_status s = choose_dims(a, model, given, fault);
    if (s == MOEC_OK) s = mc_train_settings_of(model, &settings, fault);
    if (s != MOEC_OK) return s;
    s = mc_train_params_create(model, &params, fault);
    if (s == MOEC_OK) s = mc_train_routes_find(model, &params, settings.has_bias, &routes, fault);
    if (s == MOEC_OK)
        s = mc_train_memory_of(model, &params, a->dims, a->n_dims, a->n_threads, &a->memory[policy], fault);
    if (s == MOEC_OK) {
        a->model = mc_str_dup(a->arena, mc_str_of(moec_model_name(model)));
        add_kept(a, model, policy);
        if (policy == SAVE) add_experts(a, &params, &routes);
    }
    mc_train_routes_destroy(&routes);
    mc_train_params_destroy(&params);
    return s;
}

/* An exit code; nothing printed when it is MC_EXIT_OK. */
static int
gather(account *a, const char *path, moec_compile_options *options, const int64_t given[3])
{
    for (int policy = 0; policy < N_POLICIES; policy++) {
        moec_compiled *compiled;
        moec_model *model;
        moec_error error = {0};
        mc_fault fault = {0};
        options->recompute = policy == RECOMPUTE;
        mc_progress_begin();
        moec_status s = moec_compile_file(path, options, &compiled);
        mc_progress_end();
        if (s != MOEC_OK) return mc_command_exit_code(s);
        s = moec_compiled_load(compiled, &model, &error);
        if (s != MOEC_OK)
            mc_fail(&fault, s, "%s", error.text);
        else
            s = add_policy(a, model, policy, given, &fault);
        moec_compiled_destroy(compiled);
        if (s != MOEC_OK) return mc_command_failed(s, fault.text);
    }
    return MC_EXIT_OK;
}

/* ---- printing ---- */

static const struct memory_row {
    const char *key, *text;
    size_t offset;
} memory_rows[] = {
    {"saved", "kept by forward", offsetof(mc_train_memory, saved)},
    {"workspace", "workspace", offsetof(mc_train_memory, workspace)},
    {"batch", "batch: ids, logits", offsetof(mc_train_memory, batch)},
    {"parameters", "parameters", offsetof(mc_train_memory, parameters)},
    {"gradients", "gradients", offsetof(mc_train_memory, gradients)},
    {"moments", "moments of AdamW", offsetof(mc_train_memory, moments)},
};
enum { N_ROWS = sizeof memory_rows / sizeof *memory_rows };

static uint64_t
row_value(const account *a, int policy, int row)
{
    uint64_t value;
    memcpy(&value, (const char *)&a->memory[policy] + memory_rows[row].offset, sizeof value);
    return value;
}

static uint64_t
formula(const expert_line *e)
{
    return 4 * (e->d + e->n_hidden * e->k * e->f) + 8 * e->k;
}

static void
print_size(uint64_t n_bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double value = (double)n_bytes;
    int unit = 0;
    for (; value >= 10000 && unit < 4; unit++) value /= 1000;
    printf(unit ? "%11.1f %-2s" : "%11.0f %-2s", value, units[unit]);
}

static void
print_text(const account *a)
{
    double n = (double)a->n_tokens;
    printf("%.*s:", MC_FMT(a->model));
    for (size_t i = 0; i < a->n_dims; i++) printf(" %s = %lld", a->names[i], (long long)a->dims[i].max);
    printf(", %" PRIu64 " tokens, %u threads\n\n%-24s%14s%14s\n", a->n_tokens, a->n_threads, "", policy_names[SAVE],
           policy_names[RECOMPUTE]);
    for (int row = 0; row < N_ROWS; row++) {
        printf("%-24s", memory_rows[row].text);
        for (int p = 0; p < N_POLICIES; p++) print_size(row_value(a, p, row));
        putchar('\n');
    }
    printf("%-24s", "together");
    for (int p = 0; p < N_POLICIES; p++) print_size(mc_train_memory_total(&a->memory[p]));
    printf("\n\n%-64s %10s %10s\n", "kept by forward, bytes a token", policy_names[SAVE], policy_names[RECOMPUTE]);
    for (size_t i = 0; i < a->kept.n; i++) {
        const kept_line *k = &a->kept.items[i];
        size_t times = k->n[SAVE] > k->n[RECOMPUTE] ? k->n[SAVE] : k->n[RECOMPUTE];
        char count[24] = "";
        if (times > 1) snprintf(count, sizeof count, "%zu x", times);
        printf("%6s %-57.*s", count, MC_FMT(k->name));
        for (int p = 0; p < N_POLICIES; p++)
            if (k->n[p])
                printf(" %10.1f", (double)k->bytes[p] / n);
            else
                printf(" %10s", "-");
        putchar('\n');
    }
    for (size_t i = 0; i < a->experts.n; i++) {
        const expert_line *e = &a->experts.items[i];
        printf("\n%.*s (%zu): x and %s of E = %" PRIu64 ", k = %" PRIu64 ", D = %" PRIu64 ", F = %" PRIu64
               ":\n  4 (D + %" PRIu64 " k F) + 8 k = %" PRIu64 " bytes a token, %" PRIu64 " in all\n",
               MC_FMT(e->scope), e->n, e->n_hidden == 2 ? "[G, U]" : "H", e->experts, e->k, e->d, e->f, e->n_hidden,
               formula(e), formula(e) * e->n * a->n_tokens);
    }
}

static void
print_json(const account *a)
{
    printf("{\"model\":\"%.*s\",\"tokens\":%" PRIu64 ",\"threads\":%u,\"dims\":{", MC_FMT(a->model), a->n_tokens,
           a->n_threads);
    for (size_t i = 0; i < a->n_dims; i++)
        printf("%s\"%s\":%lld", i ? "," : "", a->names[i], (long long)a->dims[i].max);
    printf("},\"policies\":{");
    for (int p = 0; p < N_POLICIES; p++) {
        printf("%s\"%s\":{", p ? "," : "", policy_names[p]);
        for (int row = 0; row < N_ROWS; row++)
            printf("\"%s\":%" PRIu64 ",", memory_rows[row].key, row_value(a, p, row));
        printf("\"total\":%" PRIu64 "}", mc_train_memory_total(&a->memory[p]));
    }
    printf("},\"kept\":[");
    for (size_t i = 0; i < a->kept.n; i++) {
        const kept_line *k = &a->kept.items[i];
        printf("%s{\"name\":\"%.*s\",\"shape\":\"%.*s\"", i ? "," : "", MC_FMT(k->name), MC_FMT(k->shape));
        for (int p = 0; p < N_POLICIES; p++)
            printf(",\"%s\":{\"tensors\":%zu,\"bytes\":%" PRIu64 "}", policy_names[p], k->n[p], k->bytes[p]);
        putchar('}');
    }
    printf("],\"experts\":[");
    for (size_t i = 0; i < a->experts.n; i++) {
        const expert_line *e = &a->experts.items[i];
        printf("%s{\"scope\":\"%.*s\",\"layers\":%zu,\"experts\":%" PRIu64 ",\"k\":%" PRIu64 ",\"d\":%" PRIu64
               ",\"f\":%" PRIu64 ",\"formula_bytes_per_token\":%" PRIu64 "}",
               i ? "," : "", MC_FMT(e->scope), e->n, e->experts, e->k, e->d, e->f, formula(e));
    }
    printf("]}\n");
}

int
mc_cmd_mem(const mc_cli *cli)
{
    moec_compile_options options;
    int64_t given[3] = {0}, n_threads = 0;
    if (!mc_command_options(cli, &options) || !mc_command_count(cli, MC_OPTION_TOKENS, INT64_C(1) << 40, &given[0]) ||
        !mc_command_count(cli, MC_OPTION_BATCH, INT64_C(1) << 40, &given[1]) ||
        !mc_command_count(cli, MC_OPTION_LENGTH, INT64_C(1) << 40, &given[2]) ||
        !mc_command_count(cli, MC_OPTION_THREADS, INT64_C(1) << 40, &n_threads))
        return MC_EXIT_USAGE;
    if (given[0] && (given[1] || given[2]))
        return mc_cli_usage("--tokens T means --batch 1 --length T: give one of them");
    if (n_threads > 1024) return mc_cli_usage("--threads is at most 1024");
    const char *path = mc_cli_one_file(cli);
    if (!path) return MC_EXIT_USAGE;
    account a = {.arena = mc_arena_create(), .n_threads = n_threads ? (uint32_t)n_threads : mc_host_cpus()};
    int code = gather(&a, path, &options, given);
    if (code == MC_EXIT_OK && mc_cli_has(cli, MC_OPTION_JSON))
        print_json(&a);
    else if (code == MC_EXIT_OK)
        print_text(&a);
    mc_arena_destroy(a.arena);
    return code;
}
