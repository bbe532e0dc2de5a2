/* rules: reads the text of `weights` blocks. Newlines mean nothing here: a rule ends where no `|` follows. The front
 * end has checked the same text before; this reader checks again, because artefacts may be older than it. */
#include "runtime/rules.h"

#include <stdlib.h>
#include <string.h>

typedef struct reader {
    const char *begin, *p;
    mc_fault *error;
} reader;

static moec_status
fail_at(const reader *r, const char *what)
{
    int line = 1;
    for (const char *p = r->begin; p < r->p; p++) line += *p == '\n';
    return mc_fail(r->error, MOEC_ERR_SYNTAX, "weights block, line %d: %s before '%.20s'", line, what, r->p);
}

static void
skip_space(reader *r)
{
    for (;;) {
        r->p += strspn(r->p, " \t\r\n;");
        if (*r->p != '#') return;
        r->p += strcspn(r->p, "\n");
    }
}

static bool
take(reader *r, const char *text)
{
    skip_space(r);
    size_t n = strlen(text);
    if (strncmp(r->p, text, n) != 0) return false;
    r->p += n;
    return true;
}

static bool
is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static mc_str
take_name(reader *r)
{
    skip_space(r);
    const char *begin = r->p;
    if (*begin >= '0' && *begin <= '9') return (mc_str){0};
    while (is_name_char(*r->p)) r->p++;
    return (mc_str){begin, (size_t)(r->p - begin)};
}

static moec_status
take_string(reader *r, mc_str *out)
{
    skip_space(r);
    if (*r->p != '"') return fail_at(r, "expected a pattern in quotes");
    size_t n = strcspn(r->p + 1, "\"\\\n");
    if (r->p[1 + n] != '"') return fail_at(r, "unfinished pattern");
    if (n == 0 || n >= MC_PATH_BYTES) return fail_at(r, "a pattern of this length");
    *out = (mc_str){r->p + 1, n};
    r->p += n + 2;
    return MOEC_OK;
}

/* A number with optional sign and `_` between digits. */
static bool
take_number(reader *r, double *out)
{
    char digits[40];
    size_t n = 0;
    skip_space(r);
    const char *p = r->p;
    while (n + 1 < sizeof digits && (strchr("+-.", *p) ? *p != 0 : is_name_char(*p))) {
        if (*p != '_') digits[n++] = *p;
        p++;
    }
    digits[n] = 0;
    char *end;
    *out = strtod(digits, &end);
    if (n == 0 || end == digits || *end) return false;
    r->p = p;
    return true;
}

/* clang-format off */
static const struct { const char *name; mc_stage_kind kind; int min_args, max_args; } stages[] = {
    {"split",     MC_STAGE_SPLIT,     0, 1}, /* (axis = 0) */
    {"unzip",     MC_STAGE_UNZIP,     0, 1}, /* (axis = 0) */
    {"transpose", MC_STAGE_TRANSPOSE, 2, 2}, /* (a, b) */
    {"reshape",   MC_STAGE_RESHAPE,   1, MC_MAX_STAGE_INTS},
    {"stack",     MC_STAGE_STACK,     0, 0},
    {"concat",    MC_STAGE_CONCAT,    0, 1}, /* (axis = 0) */
    {"add",       MC_STAGE_ADD,       1, 1},
    {"scale",     MC_STAGE_SCALE,     1, 1},
    {"cast",      MC_STAGE_CAST,      0, 0},
    {"mxfp4",     MC_STAGE_MXFP4,     0, 0},
    {"fp8",       MC_STAGE_FP8,       0, 2}, /* (o, i) = (128, 128) */
};
/* clang-format on */
enum { N_STAGES = sizeof stages / sizeof *stages };

const char *
mc_stage_name(mc_stage_kind kind)
{
    for (int i = 0; i < N_STAGES; i++)
        if (stages[i].kind == kind) return stages[i].name;
    return "";
}

bool
mc_rule_keeps_parts(const mc_rule *rule)
{
    for (int i = 0; i < rule->n_stages; i++)
        if (rule->stages[i].kind == MC_STAGE_CONCAT ||
            (rule->stages[i].kind == MC_STAGE_STACK && i + 1 < rule->n_stages))
            return false;
    return true;
}

static moec_status
take_args(reader *r, mc_stage *s)
{
    double v;
    bool parens = take(r, "(");
    if (!parens && !(take_number(r, &v))) return MOEC_OK;
    for (bool more = true; more && !(parens && take(r, ")"));) {
        if (parens) {
            mc_str name = take_name(r);
            if (name.len && !take(r, "=")) return fail_at(r, "expected a number");
            if (!take_number(r, &v)) return fail_at(r, "expected a number");
        }
        if (s->n_ints == MC_MAX_STAGE_INTS) return fail_at(r, "too many numbers");
        s->number = v;
        if (!(v >= -1e15 && v <= 1e15)) return fail_at(r, "a number that is out of range");
        s->ints[s->n_ints++] = (int64_t)v;
        if (s->kind != MC_STAGE_ADD && s->kind != MC_STAGE_SCALE && (double)(int64_t)v != v)
            return fail_at(r, "expected an integer");
        more = parens && take(r, ",");
        if (parens && !more && !take(r, ")")) return fail_at(r, "expected ')'");
    }
    return MOEC_OK;
}

static moec_status
take_stage(reader *r, mc_rule *rule)
{
    if (rule->n_stages == MC_MAX_STAGES) return fail_at(r, "too many stages");
    mc_stage *s = &rule->stages[rule->n_stages++];
    mc_str name = take_name(r);
    int i = 0;
    while (i < N_STAGES && !mc_str_is(name, stages[i].name)) i++;
    if (i == N_STAGES)
        return fail_at(r,
                       "not a stage of weights (split unzip transpose reshape stack concat add scale cast mxfp4 fp8)");
    s->kind = stages[i].kind;
    moec_status st = take_args(r, s);
    if (st != MOEC_OK) return st;
    if (s->n_ints < stages[i].min_args || s->n_ints > stages[i].max_args || (s->kind == MC_STAGE_FP8 && s->n_ints == 1))
        return fail_at(r, "wrong number of arguments");
    return MOEC_OK;
}

static bool
has_name(mc_str pattern, mc_str name)
{
    for (size_t i = 0; i + name.len + 2 <= pattern.len; i++)
        if (pattern.data[i] == '{' && pattern.data[i + 1 + name.len] == '}' &&
            mc_str_eq(mc_str_slice(pattern, i + 1, i + 1 + name.len), name))
            return true;
    return false;
}

static int
count_unnamed(mc_str pattern)
{
    int n = 0;
    for (size_t i = 0; i < pattern.len; i++) {
        if (pattern.data[i] != '*') continue;
        if (i + 1 < pattern.len && pattern.data[i + 1] == '*') i++;
        n++;
    }
    return n;
}

static moec_status
check_braces(const reader *r, mc_str pattern)
{
    for (size_t i = 0; i < pattern.len; i++) {
        if (pattern.data[i] == '}') return fail_at(r, "a pattern with '}' but no '{'");
        if (pattern.data[i] != '{') continue;
        size_t begin = ++i;
        while (i < pattern.len && is_name_char(pattern.data[i])) i++;
        if (i == begin || i == pattern.len || pattern.data[i] != '}')
            return fail_at(r, "a pattern whose '{' opens no name");
    }
    return MOEC_OK;
}

/* Names and wildcards of the source must come from every target, but for one name, which stacks. */
static moec_status
check_rule(const reader *r, mc_rule *rule)
{
    moec_status s = check_braces(r, rule->source);
    bool divides = false;
    for (int t = 0; t < rule->n_targets && s == MOEC_OK; t++) {
        s = check_braces(r, rule->targets[t]);
        if (s == MOEC_OK && count_unnamed(rule->source) > count_unnamed(rule->targets[t]))
            s = fail_at(r, "the source has more wildcards than the target");
    }
    for (size_t i = 0; i < rule->source.len && s == MOEC_OK; i++) {
        if (rule->source.data[i] != '{') continue;
        size_t end = i + 1;
        while (rule->source.data[end] != '}') end++;
        mc_str name = mc_str_slice(rule->source, i + 1, end);
        int n_found = 0;
        for (int t = 0; t < rule->n_targets; t++) n_found += has_name(rule->targets[t], name);
        if (n_found == rule->n_targets) continue;
        if (n_found) s = fail_at(r, "a name that only some targets have");
        if (rule->stacked.len && !mc_str_eq(rule->stacked, name))
            s = fail_at(r, "two names that are only in the source");
        rule->stacked = name;
    }
    for (int i = 0; i < rule->n_stages; i++)
        divides = divides || rule->stages[i].kind == MC_STAGE_SPLIT || rule->stages[i].kind == MC_STAGE_UNZIP;
    if (s == MOEC_OK && divides != (rule->n_targets > 1))
        s = fail_at(r, "several targets and a stage that divides (split, unzip) belong together");
    return s;
}

static moec_status
take_rule(reader *r, mc_rule *rule)
{
    rule->ignore = take(r, "ignore");
    do {
        if (rule->n_targets == MC_MAX_TARGETS) return fail_at(r, "too many patterns");
        moec_status s = take_string(r, &rule->targets[rule->n_targets++]);
        if (s != MOEC_OK) return s;
    } while (take(r, ","));
    if (rule->ignore) return MOEC_OK;
    if (!take(r, "<-")) return fail_at(r, "expected '<-'");
    moec_status s = take_string(r, &rule->source);
    while (s == MOEC_OK && take(r, "|")) s = take_stage(r, rule);
    return s == MOEC_OK ? check_rule(r, rule) : s;
}

/* Room for one more item; doubles at powers of two. NULL: no memory (and `items` stays). */
static void *
grow(void *items, size_t n, size_t item_bytes)
{
    if (n & (n - 1)) return items;
    return realloc(items, (n ? 2 * n : 1) * item_bytes);
}

static moec_status
take_map(reader *r, mc_rules *out, bool braces)
{
    mc_rule_map *maps = grow(out->maps, out->n_maps, sizeof *maps);
    if (!maps) return mc_fail(r->error, MOEC_ERR_MEMORY, "out of memory");
    out->maps = maps;
    mc_rule_map *map = &out->maps[out->n_maps++];
    *map = (mc_rule_map){.first = out->n_rules};
    if (braces) map->name = take_name(r);
    if (braces && !take(r, "{")) return fail_at(r, "expected '{'");
    for (;;) {
        skip_space(r);
        if (braces && take(r, "}")) break;
        if (!braces && !*r->p) break;
        mc_rule *rules = grow(out->rules, out->n_rules, sizeof *rules);
        if (!rules) return mc_fail(r->error, MOEC_ERR_MEMORY, "out of memory");
        out->rules = rules;
        mc_rule *rule = &out->rules[out->n_rules++];
        *rule = (mc_rule){0};
        moec_status s = take_rule(r, rule);
        if (s != MOEC_OK) return s;
    }
    map->n = out->n_rules - map->first;
    return MOEC_OK;
}

moec_status
mc_rules_parse(const char *text, mc_rules *out, mc_fault *error)
{
    *out = (mc_rules){0};
    reader r = {text, text, error};
    moec_status s = MOEC_OK;
    skip_space(&r);
    if (!*r.p) r.begin = r.p = "\"**\" <- \"**\"";
    if (*r.p == '"' || strncmp(r.p, "ignore", 6) == 0) {
        s = take_map(&r, out, false);
    } else {
        while (s == MOEC_OK && take(&r, "weights")) s = take_map(&r, out, true);
        skip_space(&r);
        if (s == MOEC_OK && *r.p) s = fail_at(&r, "expected 'weights'");
    }
    if (s != MOEC_OK) mc_rules_fini(out);
    return s;
}

void
mc_rules_fini(mc_rules *rules)
{
    free(rules->rules);
    free(rules->maps);
    *rules = (mc_rules){0};
}
