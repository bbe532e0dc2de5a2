/* Reading the place block. The front end has checked a .moe text's spelling; a module may also come from a .moir file,
 * so nothing is taken for granted. The one idea: settings are kept as they come, and weighed against each other at the
 * end. */
#include "passes/ep/mesh.h"

#include <ctype.h>

enum { MAX_AXES = 8, MAX_SIZE = 1 << 20 };

typedef struct axis {
    mc_str name;
    int64_t size;
    bool has_tokens;
} axis;

typedef struct reader {
    mc_str text;
    size_t at;
    mc_ep_mesh *mesh;
    mc_diags *diags;
    axis axes[MAX_AXES];
    int n_axes;
    bool has_tokens, has_nodes;
} reader;

static bool
fail(const reader *r, const char *what)
{
    return mc_error(r->diags, (mc_span){0}, MC_E0801, "place, character %zu of '%.*s': %s", r->at + 1, MC_FMT(r->text),
                    what);
}

/* ---- tokens ---- */

static void
blanks(reader *r)
{
    while (r->at < r->text.len && (r->text.data[r->at] == ' ' || r->text.data[r->at] == '\n')) r->at++;
}

static bool
accept(reader *r, char c)
{
    blanks(r);
    if (r->at >= r->text.len || r->text.data[r->at] != c) return false;
    r->at++;
    return true;
}

static mc_str
word(reader *r)
{
    blanks(r);
    size_t begin = r->at;
    while (r->at < r->text.len && (isalnum((unsigned char)r->text.data[r->at]) || r->text.data[r->at] == '_')) r->at++;
    return mc_str_slice(r->text, begin, r->at);
}

static bool
number(reader *r, int64_t least, int64_t *out)
{
    mc_str digits = word(r);
    *out = 0;
    for (size_t i = 0; i < digits.len && *out <= MAX_SIZE; i++) {
        if (!isdigit((unsigned char)digits.data[i])) return fail(r, "a whole number belongs here");
        *out = *out * 10 + (digits.data[i] - '0');
    }
    if (!digits.len) return fail(r, "a whole number belongs here");
    if (*out < least) return fail(r, "the number must be at least 1");
    return *out <= MAX_SIZE || fail(r, "the number is greater than 1048576");
}

static axis *
find_axis(reader *r, mc_str name)
{
    for (int i = 0; i < r->n_axes; i++)
        if (mc_str_eq(r->axes[i].name, name)) return &r->axes[i];
    return NULL;
}

/* ---- settings ---- */

static bool
read_mesh(reader *r)
{
    do {
        mc_str name = word(r);
        if (!name.len || !accept(r, '=')) return fail(r, "an axis is written as name = size");
        axis *a = find_axis(r, name); /* a later size wins */
        if (!a && r->n_axes == MAX_AXES) return fail(r, "a mesh has at most 8 axes");
        if (!a) a = &r->axes[r->n_axes++];
        a->name = name;
        if (!number(r, 1, &a->size)) return false;
    } while (accept(r, ','));
    return true;
}

static bool
over(reader *r)
{
    return (mc_str_is(word(r), "over") && accept(r, '=')) || fail(r, "expected 'over ='");
}

static bool
read_experts(reader *r)
{
    if (!over(r)) return false;
    r->mesh->experts_over = word(r);
    return r->mesh->experts_over.len || fail(r, "expected an axis");
}

/* Axes are looked up at the end: the mesh may come later. */
static bool
read_tokens(reader *r)
{
    if (!over(r)) return false;
    blanks(r);
    size_t begin = r->at;
    bool list = accept(r, '[');
    do {
        if (!word(r).len) return fail(r, "expected an axis");
    } while (list && accept(r, ','));
    if (list && !accept(r, ']')) return fail(r, "expected ',' or ']'");
    r->mesh->tokens_over = mc_str_slice(r->text, begin, r->at);
    r->has_tokens = true;
    return true;
}

static bool
read_order(reader *r)
{
    mc_str value = word(r);
    r->mesh->order = mc_str_is(value, "tree") ? MC_EP_TREE : MC_EP_STRICT;
    return mc_str_is(value, "tree") || mc_str_is(value, "strict") || fail(r, "order is strict or tree");
}

static bool
read_exchange(reader *r)
{
    static const char *const names[] = {"expert", "rank", "node", "auto"};
    mc_str value = word(r);
    for (int i = 0; i <= MC_EP_AUTO; i++) {
        if (!mc_str_is(value, names[i])) continue;
        r->mesh->exchange = (mc_ep_exchange)i;
        return true;
    }
    return fail(r, "exchange is auto, expert, rank or node");
}

static bool
read_setting(reader *r)
{
    mc_str name = word(r);
    if (mc_str_is(name, "mesh")) return read_mesh(r);
    if (mc_str_is(name, "experts")) return read_experts(r);
    if (mc_str_is(name, "tokens")) return read_tokens(r);
    if (mc_str_is(name, "redundant")) return number(r, 0, &r->mesh->redundant);
    if (mc_str_is(name, "order")) return read_order(r);
    if (mc_str_is(name, "exchange")) return read_exchange(r);
    if (mc_str_is(name, "nodes")) {
        r->has_nodes = true;
        return number(r, 1, &r->mesh->nodes);
    }
    if (!mc_str_is(name, "layout"))
        return fail(r, "expected mesh, experts, tokens, redundant, layout, nodes, order or exchange");
    mc_str value = word(r);
    r->mesh->round_robin = mc_str_is(value, "round_robin");
    return r->mesh->round_robin || mc_str_is(value, "contiguous") || fail(r, "layout is contiguous or round_robin");
}

/* ---- what they mean together ---- */

static bool
mark_tokens(reader *r)
{
    mc_str list = r->mesh->tokens_over;
    for (size_t begin = 0, end = 0; begin < list.len; begin = end + 1) {
        while (begin < list.len && !isalnum((unsigned char)list.data[begin]) && list.data[begin] != '_') begin++;
        for (end = begin; end < list.len && (isalnum((unsigned char)list.data[end]) || list.data[end] == '_');) end++;
        mc_str name = mc_str_slice(list, begin, end);
        axis *a = find_axis(r, name);
        if (name.len && !a)
            return mc_error(r->diags, (mc_span){0}, MC_E0801, "tokens are over '%.*s', which the mesh has not",
                            MC_FMT(name));
        if (a) a->has_tokens = true;
    }
    return true;
}

static bool
size_axes(reader *r)
{
    mc_ep_mesh *mesh = r->mesh;
    axis *experts = find_axis(r, mesh->experts_over);
    if (!experts)
        return mc_error(r->diags, (mc_span){0}, MC_E0801, "experts are over '%.*s', which the mesh has not",
                        MC_FMT(mesh->experts_over));
    if (!mark_tokens(r)) return false;
    mesh->ep = experts->size;
    mesh->dp = mesh->tp = 1;
    for (int i = 0; i < r->n_axes; i++) {
        axis *a = &r->axes[i];
        if (a == experts) continue;
        bool tokens = r->has_tokens ? a->has_tokens : !mc_str_is(a->name, "tp");
        int64_t *size = tokens ? &mesh->dp : &mesh->tp;
        if (a->size > 1 && !tokens)
            return mc_error(r->diags, (mc_span){0}, MC_E0801,
                            "the axis '%.*s' = %lld has no tokens over it; one layer over several ranks (tensor "
                            "parallelism) is not supported: make it 1, or name it in 'tokens over'",
                            MC_FMT(a->name), (long long)a->size);
        *size *= a->size;
        if (mesh->ep * *size > MAX_SIZE)
            return mc_error(r->diags, (mc_span){0}, MC_E0801, "the mesh has more than %d ranks", MAX_SIZE);
    }
    if (r->has_tokens && !experts->has_tokens && experts->size > 1)
        return mc_error(r->diags, (mc_span){0}, MC_E0801,
                        "tokens are over %.*s, but not over '%.*s', which the experts are over: every rank would route "
                        "the same tokens; write 'tokens over = [.., %.*s]'",
                        MC_FMT(mesh->tokens_over), MC_FMT(experts->name), MC_FMT(experts->name));
    return true;
}

static bool
share_nodes(reader *r)
{
    mc_ep_mesh *mesh = r->mesh;
    int64_t world = mesh->ep * mesh->dp;
    if (!r->has_nodes) mesh->nodes = 1;
    if (world % mesh->nodes != 0)
        return mc_error(r->diags, (mc_span){0}, MC_E0801, "%lld ranks do not divide over %lld nodes", (long long)world,
                        (long long)mesh->nodes);
    int64_t on_node = world / mesh->nodes;
    if (on_node % mesh->ep != 0 && mesh->ep % on_node != 0)
        return mc_error(r->diags, (mc_span){0}, MC_E0801,
                        "%lld ranks a node and %lld ranks that share the experts: one must be a multiple of the other",
                        (long long)on_node, (long long)mesh->ep);
    mesh->per_node = on_node < mesh->ep ? on_node : mesh->ep;
    return true;
}

bool
mc_ep_mesh_is_axes(mc_str text)
{
    mc_arena *scratch = mc_arena_create();
    mc_diags ignored;
    mc_diags_init(&ignored, scratch, NULL);
    mc_ep_mesh mesh;
    reader r = {.text = text, .mesh = &mesh, .diags = &ignored};
    bool good = read_mesh(&r);
    blanks(&r);
    mc_arena_destroy(scratch);
    return good && r.at == text.len;
}

bool
mc_ep_mesh_parse(mc_str text, mc_ep_mesh *out, mc_diags *diags)
{
    *out = (mc_ep_mesh){.state = MC_EP_MESH_WRONG, .ep = 1, .dp = 1, .tp = 1, .exchange = MC_EP_AUTO};
    reader r = {.text = text, .mesh = out, .diags = diags};
    while (r.at < text.len) {
        if (!read_setting(&r)) return false;
        blanks(&r);
        if (r.at < text.len && !accept(&r, ';')) return fail(&r, "expected ';' or the end");
        blanks(&r);
    }
    if (!out->experts_over.len && find_axis(&r, MC_STR("ep"))) out->experts_over = MC_STR("ep");
    if (!out->experts_over.len) {
        out->state = MC_EP_MESH_NONE;
        return false;
    }
    if (!size_axes(&r) || !share_nodes(&r)) return false;
    out->state = MC_EP_MESH_READ;
    return true;
}

bool
mc_ep_mesh_read(const mc_module *m, mc_ep_mesh *out, mc_diags *diags)
{
    return mc_ep_mesh_parse(mc_module_meta(m, "place"), out, diags);
}
