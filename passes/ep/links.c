/* The table of links and the reading of files over it. Every number of a file is checked where it stands: a rate of
 * zero would make a plan of infinities. */
#include "passes/ep/links.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NODES MC_EP_LINK_NODES
#define FABRIC MC_EP_LINK_FABRIC
#define RANK false
#define NODE true
#define DMA false
#define CPU true
static const mc_ep_link link_rows[] = {
#define MC_EP_LINK(kind, name, rate, port, latency, per, mover, source)                                                \
    {name, kind, rate, port, latency, per, mover, false, source},
#include "passes/ep/links.def"
#undef MC_EP_LINK
};
static const mc_ep_processor rank_rows[] = {
#define MC_EP_RANK(name, compute, memory, source) {name, compute, memory, false, source},
#include "passes/ep/links.def"
#undef MC_EP_RANK
};
enum { N_LINKS = sizeof link_rows / sizeof *link_rows, N_RANKS = sizeof rank_rows / sizeof *rank_rows };

static const mc_ep_link *
find_link(mc_str name, mc_ep_link_kind kind)
{
    for (int i = 0; i < N_LINKS; i++)
        if (link_rows[i].kind == kind && mc_str_is(name, link_rows[i].name)) return &link_rows[i];
    return NULL;
}

static const mc_ep_processor *
find_ranks(mc_str name)
{
    for (int i = 0; i < N_RANKS; i++)
        if (mc_str_is(name, rank_rows[i].name)) return &rank_rows[i];
    return NULL;
}

void
mc_ep_links_default(mc_ep_links *out)
{
    *out = (mc_ep_links){*find_link(MC_STR("10gbe"), NODES), *find_link(MC_STR("cpu"), FABRIC),
                         *find_ranks(MC_STR("cpu"))};
}

bool
mc_ep_links_named(mc_str names, mc_ep_links *out)
{
    mc_ep_links_default(out);
    for (size_t begin = 0; begin <= names.len;) {
        size_t end = begin;
        while (end < names.len && names.data[end] != ',') end++;
        mc_str name = mc_str_slice(names, begin, end);
        const mc_ep_link *nodes = find_link(name, NODES), *fabric = find_link(name, FABRIC);
        const mc_ep_processor *ranks = find_ranks(name);
        if (!nodes && !fabric && !ranks) return false;
        if (nodes) out->nodes = *nodes;
        if (fabric) out->fabric = *fabric;
        if (ranks) out->ranks = *ranks;
        begin = end + 1;
    }
    return true;
}

/* ---- files ---- */

static const char *const keys[] = {"nodes",       "nodes.rate",     "nodes.latency", "nodes.per",     "fabric",
                                   "fabric.rate", "fabric.latency", "ranks",         "ranks.compute", "ranks.memory"};
enum { N_KEYS = sizeof keys / sizeof *keys, LONGEST_NUMBER = 40 };

typedef struct line {
    mc_str key, value;
    mc_span key_at, value_at;
} line;

static mc_str
trim(mc_str s)
{
    while (s.len && strchr(" \t\r", s.data[0])) s = mc_str_slice(s, 1, s.len);
    while (s.len && strchr(" \t\r", s.data[s.len - 1])) s.len--;
    return s;
}

static mc_span
span_of(mc_str text, uint32_t file, mc_str part)
{
    uint32_t begin = (uint32_t)(part.data - text.data);
    return (mc_span){file, begin, begin + (uint32_t)part.len};
}

static bool
read_number(const line *l, bool zero_allowed, double *out, mc_diags *diags)
{
    char digits[LONGEST_NUMBER + 1], *end = digits;
    bool good = l->value.len > 0 && l->value.len <= LONGEST_NUMBER;
    for (size_t i = 0; good && i < l->value.len; i++)
        good = l->value.data[i] && strchr("+-.eE0123456789", l->value.data[i]);
    if (good) {
        memcpy(digits, l->value.data, l->value.len);
        digits[l->value.len] = 0;
        *out = strtod(digits, &end);
        good = !*end;
    }
    if (!good)
        return mc_error(diags, l->value_at, MC_E0802, "%.*s takes a number, not '%.*s'", MC_FMT(l->key),
                        (int)(l->value.len < LONGEST_NUMBER ? l->value.len : LONGEST_NUMBER), l->value.data);
    if (*out > 0 ? *out >= 1e-6 && *out <= 1e9 : zero_allowed && *out == 0) return true;
    return mc_error(diags, l->value_at, MC_E0802, "%.*s is %.*s: it must be %s and at most 1e9", MC_FMT(l->key),
                    MC_FMT(l->value), zero_allowed ? "0 or more" : "more than 0");
}

static bool
read_row(const line *l, mc_ep_links *out, mc_diags *diags)
{
    mc_str names[N_LINKS + N_RANKS];
    size_t n = 0;
    const mc_ep_link *row = NULL;
    const mc_ep_processor *ranks = NULL;
    if (mc_str_is(l->key, "ranks")) {
        ranks = find_ranks(l->value);
        for (int i = 0; i < N_RANKS; i++) names[n++] = mc_str_of(rank_rows[i].name);
    } else {
        mc_ep_link_kind kind = mc_str_is(l->key, "nodes") ? NODES : FABRIC;
        row = find_link(l->value, kind);
        for (int i = 0; i < N_LINKS; i++)
            if (link_rows[i].kind == kind) names[n++] = mc_str_of(link_rows[i].name);
    }
    if (ranks) out->ranks = *ranks;
    if (row) *(row->kind == NODES ? &out->nodes : &out->fabric) = *row;
    if (row || ranks) return true;
    mc_buf known = {0};
    for (size_t i = 0; i < n; i++) mc_buf_printf(&known, "%s%.*s", i ? ", " : "", MC_FMT(names[i]));
    mc_error(diags, l->value_at, MC_E0802, "%.*s has no row '%.*s'; it has %s", MC_FMT(l->key), MC_FMT(l->value),
             known.data);
    mc_buf_fini(&known);
    return false;
}

static bool
read_value(const line *l, mc_ep_links *out, mc_diags *diags)
{
    static const char in_file[] = "the links file";
    mc_ep_link *link = mc_str_starts(l->key, "nodes") ? &out->nodes : &out->fabric;
    if (mc_str_ends(l->key, ".per")) {
        link->per_node = mc_str_is(l->value, "node");
        return link->per_node || mc_str_is(l->value, "rank") ||
               mc_error(diags, l->value_at, MC_E0802, "%.*s is rank or node", MC_FMT(l->key));
    }
    if (mc_str_ends(l->key, ".latency")) return read_number(l, true, &link->latency, diags);
    double value;
    if (!read_number(l, false, &value, diags)) return false;
    if (mc_str_starts(l->key, "ranks")) {
        *(mc_str_ends(l->key, ".compute") ? &out->ranks.compute : &out->ranks.memory) = value;
        out->ranks.measured = true;
        out->ranks.source = in_file;
        return true;
    }
    link->rate = value;
    if (link->port < value) link->port = value;
    link->measured = true;
    link->source = in_file;
    return true;
}

static bool
split_line(mc_str text, uint32_t file, mc_str whole, line *out, mc_diags *diags)
{
    const char *equals = memchr(whole.data, '=', whole.len);
    if (!equals) return mc_error(diags, span_of(text, file, whole), MC_E0802, "a line is written as name = value");
    size_t at = (size_t)(equals - whole.data);
    out->key = trim(mc_str_slice(whole, 0, at));
    out->value = trim(mc_str_slice(whole, at + 1, whole.len));
    out->key_at = span_of(text, file, out->key);
    out->value_at = span_of(text, file, out->value);
    if (!out->value.len) return mc_error(diags, out->key_at, MC_E0802, "%.*s has no value", MC_FMT(out->key));
    return true;
}

static int
find_key(const line *l, mc_diags *diags)
{
    mc_str names[N_KEYS];
    for (int i = 0; i < N_KEYS; i++) {
        names[i] = mc_str_of(keys[i]);
        if (mc_str_eq(names[i], l->key)) return i;
    }
    mc_str near = mc_str_nearest(l->key, names, N_KEYS);
    mc_error(diags, l->key_at, MC_E0802, "nothing of links is called '%.*s'%s%.*s%s", MC_FMT(l->key),
             near.len ? "; did you mean " : "", MC_FMT(near), near.len ? "?" : "");
    return -1;
}

/* Rows first, so that a number beats its row wherever it stands. */
static bool
read_lines(mc_str text, uint32_t file, bool rows, bool seen[N_KEYS], mc_ep_links *out, mc_diags *diags)
{
    for (size_t begin = 0, end; begin < text.len; begin = end + 1) {
        for (end = begin; end < text.len && text.data[end] != '\n';) end++;
        size_t stop = begin;
        while (stop < end && text.data[stop] != '#') stop++;
        mc_str whole = trim(mc_str_slice(text, begin, stop));
        line l;
        if (!whole.len) continue;
        if (!split_line(text, file, whole, &l, diags)) return false;
        int key = find_key(&l, diags);
        if (key < 0) return false;
        if ((memchr(l.key.data, '.', l.key.len) == NULL) != rows) continue;
        if (seen[key]) return mc_error(diags, l.key_at, MC_E0802, "%s is there twice", keys[key]);
        seen[key] = true;
        if (!(rows ? read_row(&l, out, diags) : read_value(&l, out, diags))) return false;
    }
    return true;
}

bool
mc_ep_links_parse(const mc_sources *sources, uint32_t file, mc_ep_links *out, mc_diags *diags)
{
    mc_str text = mc_source_of(sources, (mc_span){file, 0, 0})->text;
    bool seen[N_KEYS] = {false};
    mc_ep_links_default(out);
    return read_lines(text, file, true, seen, out, diags) && read_lines(text, file, false, seen, out, diags);
}
