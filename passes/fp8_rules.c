/* Reading fp8 lines and applying them to a weight. The front end has checked the user's spelling already; a module may
 * also come from a .moir file, so nothing is taken for granted here. */
#include "passes/fp8_rules.h"

#include "runtime/base/path.h"

#include <ctype.h>

enum { BLOCK = 128 };

static const char *const roles[] = {"embed", "head", "router", "experts", "shared", "attention", "dense", "norm"};

typedef struct reader {
    mc_str line;
    size_t at;
    mc_arena *arena;
    mc_diags *diags;
} reader;

static bool
fail(reader *r, const char *what)
{
    return mc_error(r->diags, (mc_span){0}, MC_E0506, "fp8 '%.*s', character %zu: %s", MC_FMT(r->line), r->at + 1,
                    what);
}

static bool
accept(reader *r, char c)
{
    while (r->at < r->line.len && r->line.data[r->at] == ' ') r->at++;
    if (r->at >= r->line.len || r->line.data[r->at] != c) return false;
    r->at++;
    return true;
}

static mc_str
word(reader *r)
{
    while (r->at < r->line.len && r->line.data[r->at] == ' ') r->at++;
    size_t begin = r->at;
    while (r->at < r->line.len && (isalnum((unsigned char)r->line.data[r->at]) || r->line.data[r->at] == '_')) r->at++;
    return mc_str_slice(r->line, begin, r->at);
}

/* [o, i] of which i, and o when `o` is not 0, must be what the kernels do. */
static bool
block(reader *r, const char *first, const char *wrong)
{
    mc_str block_text = mc_strf(r->arena, "%d", BLOCK);
    bool good = accept(r, '[') && mc_str_is(word(r), first) && accept(r, ',') && mc_str_eq(word(r), block_text) &&
                accept(r, ']');
    return good || fail(r, wrong);
}

static bool
is_role(mc_str name)
{
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (mc_str_is(name, roles[i])) return true;
    return false;
}

static bool
item(reader *r, mc_fp8_line *line, bool except)
{
    if (except && accept(r, '"')) {
        size_t begin = r->at;
        while (r->at < r->line.len && r->line.data[r->at] != '"') r->at++;
        mc_vec_push(r->arena, &line->not_paths, (mc_fp8_glob){mc_str_slice(r->line, begin, r->at), false});
        return accept(r, '"') || fail(r, "a string is not closed");
    }
    size_t begin = r->at;
    mc_str role = word(r);
    if (!is_role(role)) {
        r->at = begin;
        return fail(r, "expected a role: embed, head, router, experts, shared, attention, dense, norm");
    }
    if (except)
        mc_vec_push(r->arena, &line->not_roles, role);
    else
        mc_vec_push(r->arena, &line->on, role);
    return true;
}

static bool
list(reader *r, mc_fp8_line *line, bool except)
{
    if (!accept(r, '[')) return fail(r, "expected '['");
    if (accept(r, ']')) return true;
    do {
        if (!item(r, line, except)) return false;
    } while (accept(r, ','));
    return accept(r, ']') || fail(r, "expected ',' or ']'");
}

static bool
argument(reader *r, mc_fp8_line *line, bool *has_on)
{
    mc_str key = word(r);
    if (!accept(r, '=')) return fail(r, "expected '='");
    if (mc_str_is(key, "block")) return block(r, "128", "only block = [128, 128] is supported");
    if (mc_str_is(key, "except")) return list(r, line, true);
    if (mc_str_is(key, "on")) {
        *has_on = true;
        return list(r, line, false);
    }
    if (!mc_str_is(key, "act")) return fail(r, "expected block, act, on or except");
    /* how activations are scaled is for backends with FP8 arithmetic; all of them are read, none matters here */
    mc_str whole = word(r);
    if (mc_str_is(whole, "tensor") || mc_str_is(whole, "token")) return true;
    return block(r, "1", "expected act = [1, 128], tensor or token");
}

static bool
parse_line(reader *r, mc_fp8_line *line)
{
    mc_str format = word(r);
    if (mc_str_is(format, "e5m2")) return fail(r, "weights in e5m2 are not supported; e4m3 is");
    if (!mc_str_is(format, "e4m3")) return fail(r, "expected e4m3");
    bool has_on = false;
    while (accept(r, ','))
        if (!argument(r, line, &has_on)) return false;
    while (r->at < r->line.len && r->line.data[r->at] == ' ') r->at++;
    if (r->at < r->line.len) return fail(r, "expected ',' or the end");
    if (!has_on) {
        mc_vec_push(r->arena, &line->on, MC_STR("attention"));
        mc_vec_push(r->arena, &line->on, MC_STR("dense"));
    }
    return true;
}

bool
mc_fp8_rules_parse(mc_str text, mc_arena *arena, mc_diags *diags, mc_fp8_rules *out)
{
    *out = (mc_fp8_rules){0};
    for (size_t begin = 0; begin < text.len;) {
        size_t end = begin;
        while (end < text.len && text.data[end] != '\n') end++;
        reader r = {.line = mc_str_slice(text, begin, end), .arena = arena, .diags = diags};
        mc_fp8_line line = {0};
        begin = end + 1;
        if (r.line.len == 0) continue;
        if (!parse_line(&r, &line)) return false;
        mc_vec_push(arena, &out->lines, line);
    }
    return true;
}

static bool
any_role(const mc_str *items, size_t n, mc_str role)
{
    for (size_t i = 0; i < n; i++)
        if (mc_str_eq(items[i], role)) return true;
    return false;
}

mc_fp8_choice
mc_fp8_rules_choose(mc_fp8_rules *rules, mc_str role, mc_str path)
{
    mc_fp8_choice choice = MC_FP8_UNNAMED;
    for (size_t i = 0; i < rules->lines.n; i++) {
        mc_fp8_line *line = &rules->lines.items[i];
        bool excepted = any_role(line->not_roles.items, line->not_roles.n, role);
        for (size_t k = 0; k < line->not_paths.n; k++) {
            if (!mc_path_matches(line->not_paths.items[k].text, path)) continue;
            excepted = line->not_paths.items[k].used = true;
        }
        if (excepted)
            choice = MC_FP8_EXCEPTED;
        else if (any_role(line->on.items, line->on.n, role))
            choice = MC_FP8_CHOSEN;
    }
    return choice;
}
