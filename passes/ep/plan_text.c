/* A plan as text: what was decided, what it takes, what was turned down and why. No line depends on anything but the
 * plan. */
#include "passes/ep/plan.h"

enum { SHOWN_RANKS = 4 };

/* ---- numbers ---- */

/* Three digits that count: "82.1 MB". */
static void
put_unit(mc_buf *out, double value, const char *const *units, int n_units)
{
    int unit = 0;
    for (; value >= 999.5 && unit < n_units - 1; unit++) value /= 1000;
    int digits = value == (double)(int64_t)value && unit == 0 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
    mc_buf_printf(out, "%.*f%s", digits, value, units[unit]);
}

static void
put_bytes(mc_buf *out, double bytes)
{
    static const char *const units[] = {" B", " kB", " MB", " GB", " TB", " PB"};
    put_unit(out, bytes, units, 6);
}

static void
put_time(mc_buf *out, double seconds)
{
    static const char *const units[] = {" us", " ms", " s"};
    put_unit(out, seconds * 1e6, units, 3);
}

static void
put_count(mc_buf *out, double n)
{
    mc_buf_printf(out, n < 100 && n != (double)(int64_t)n ? "%.1f" : "%.0f", n);
}

static const char *
dtype_name(moec_dtype dtype)
{
    return moec_dtype_name(dtype);
}

static void
put_path(mc_buf *out, mc_str path)
{
    mc_buf_str(out, path.len ? path : MC_STR("the experts"));
}

/* ---- the head ---- */

static void
put_link(mc_buf *out, const char *what, const mc_ep_link *l, bool explain)
{
    mc_buf_printf(out, "  %-9s %g GB/s%s", what, l->rate, l->per_node ? " a node" : " a rank");
    if (l->latency > 0) mc_buf_printf(out, ", %g us a message", l->latency);
    mc_buf_printf(out, " (%s%s)\n", l->measured ? "measured; row " : "assumed: ", l->name);
    if (explain) mc_buf_printf(out, "            %s\n", l->source);
}

static void
put_head(const mc_ep_plan *p, bool explain, mc_buf *out)
{
    const mc_ep_mesh *m = &p->mesh;
    const mc_ep_links *l = &p->settings.links;
    mc_buf_printf(out, "%.*s: %lld ranks share the experts", MC_FMT(p->model), (long long)m->ep);
    if (m->dp > 1) mc_buf_printf(out, ", %lld replicas", (long long)m->dp);
    int64_t on_node = m->ep * m->dp / m->nodes;
    if (m->nodes > 1)
        mc_buf_printf(out, ", %lld nodes of %lld", (long long)m->nodes, (long long)on_node);
    else
        mc_buf_puts(out, ", one node");
    mc_buf_printf(out, "; %lld tokens a rank\n", (long long)p->settings.tokens);
    mc_buf_printf(out, "  order     %s\n",
                  m->order == MC_EP_TREE ? "tree: each rank adds up, then ranks in ascending order"
                                         : "strict: the bits of one rank");
    if (m->nodes > 1) put_link(out, "nodes", &l->nodes, explain);
    put_link(out, "fabric", &l->fabric, explain);
    mc_buf_printf(out, "  ranks     %g TFLOP/s, %g GB/s of memory (%s%s)\n", l->ranks.compute, l->ranks.memory,
                  l->ranks.measured ? "measured; row " : "assumed: ", l->ranks.name);
    if (explain) mc_buf_printf(out, "            %s\n", l->ranks.source);
}

/* ---- a layer ---- */

static void
put_router(const mc_ep_layer *l, mc_buf *out)
{
    const mc_ep_choice *c = &l->load.choice;
    mc_buf_printf(out, "  experts   %lld of %lld x %lld in %s, ", (long long)c->experts, (long long)l->inner,
                  (long long)l->width, dtype_name(l->dtype));
    if (l->experts_choose)
        mc_buf_printf(out, "which choose their tokens, %lld for each in the mean\n", (long long)c->k);
    else if (c->groups > 1)
        mc_buf_printf(out, "top %lld in the best %lld of %lld groups\n", (long long)c->k, (long long)c->keep,
                      (long long)c->groups);
    else
        mc_buf_printf(out, "top %lld\n", (long long)c->k);
}

/* "0-3" or "0, 64, 128", of one rank. */
static void
put_rank(const mc_ep_layer *l, int64_t rank, mc_buf *out)
{
    const int32_t *e = &l->placed[rank * l->slots];
    for (int64_t i = 0, j; i < l->slots; i = j) {
        for (j = i + 1; j < l->slots && e[j] == e[j - 1] + 1;) j++;
        mc_buf_printf(out, "%s%d", i ? ", " : "", e[i]);
        if (j - i > 1) mc_buf_printf(out, "-%d", e[j - 1]);
    }
}

static void
put_holders(const mc_ep_plan *p, const mc_ep_layer *l, bool explain, mc_buf *out)
{
    int64_t n = l->load.ranks;
    mc_buf_printf(out, "  held      %lld a rank", (long long)l->slots);
    if (p->mesh.redundant) mc_buf_printf(out, ", %lld of all are copies", (long long)p->mesh.redundant);
    bool line = explain || l->slots > 16 || p->mesh.redundant || p->mesh.round_robin;
    mc_buf_puts(out, line ? "\n" : ":");
    for (int64_t r = 0; r < n; r++) {
        bool shown = explain || n <= SHOWN_RANKS + 1 || r < SHOWN_RANKS - 1 || r == n - 1;
        if (!shown && r > SHOWN_RANKS - 1) continue;
        if (line) mc_buf_puts(out, "            ");
        mc_buf_puts(out, !line && r ? "; " : line ? "" : " ");
        if (!shown) {
            mc_buf_puts(out, "..");
        } else {
            mc_buf_printf(out, "rank %lld: ", (long long)r);
            put_rank(l, r, out);
        }
        if (line) mc_buf_putc(out, '\n');
    }
    if (!line) mc_buf_putc(out, '\n');
}

static void
put_way(const mc_ep_plan *p, const mc_ep_layer *l, mc_buf *out)
{
    static const char *const texts[] = {"a row for each assignment", "a row for each (token, rank)",
                                        "a row for each (token, node), passed on inside it"};
    mc_buf_printf(out, "  way       by %s: %s; %s\n", mc_ep_way_name(l->way), texts[l->way],
                  p->mesh.exchange == MC_EP_AUTO ? "it takes the least time" : "the place block asks for it");
    mc_buf_printf(out, "  there     %s, %.0f B a row: %s\n", dtype_name(l->there.dtype), l->there.row_bytes,
                  l->there.why);
    mc_buf_printf(out, "  back      %s, %.0f B a row: %s\n", dtype_name(l->back.dtype), l->back.row_bytes, l->back.why);
}

static void
put_rows(const mc_ep_layer *l, bool explain, mc_buf *out)
{
    mc_buf_puts(out, "  rows      ");
    put_count(out, l->rows);
    mc_buf_puts(out, " arrive at a rank (at most ");
    put_count(out, l->most_rows);
    mc_buf_puts(out, "), ");
    put_count(out, l->assignments);
    mc_buf_puts(out, " assignments (at most ");
    put_count(out, l->most_assignments);
    mc_buf_puts(out, ")\n");
    if (!explain) return;
    mc_buf_printf(out, "            a token reaches %.2f of %lld ranks",
                  mc_ep_hits(&l->load.choice, l->load.ranks, l->load.spread), (long long)l->load.ranks);
    if (l->load.nodes > 1)
        mc_buf_printf(out, " and %.2f of %lld nodes (at most %lld)",
                      mc_ep_hits(&l->load.choice, l->load.nodes, l->load.spread), (long long)l->load.nodes,
                      (long long)mc_ep_reach(&l->load.choice, l->load.nodes, l->load.spread));
    mc_buf_puts(out,
                ", experts drawn evenly\n            bounds: T R rows, T R min(k, experts of a rank) assignments\n");
}

static void
put_traffic(const mc_ep_layer *l, mc_buf *out)
{
    const mc_ep_weighed *w = &l->ways[l->way];
    if (l->load.nodes > 1) {
        mc_buf_puts(out, "  nodes     ");
        put_bytes(out, w->there.nodes);
        mc_buf_puts(out, " there and ");
        put_bytes(out, w->back.nodes);
        mc_buf_puts(out, " back leave a rank for other nodes (at most ");
        put_bytes(out, l->most_sent);
        mc_buf_puts(out, " and ");
        put_bytes(out, l->most_back);
        mc_buf_puts(out, ")\n");
    }
    mc_buf_puts(out, "  fabric    ");
    put_bytes(out, w->there.fabric);
    mc_buf_puts(out, " there and ");
    put_bytes(out, w->back.fabric);
    mc_buf_puts(out, " back arrive at a rank inside its node\n");
}

static void
put_times(const mc_ep_plan *p, const mc_ep_layer *l, bool explain, mc_buf *out)
{
    const mc_ep_weighed *w = &l->ways[l->way];
    double sum = w->there_time + l->experts_time + w->back_time;
    mc_buf_puts(out, "  time      ");
    put_time(out, w->there_time);
    mc_buf_puts(out, " there, ");
    put_time(out, l->experts_time);
    mc_buf_puts(out, " in the experts, ");
    put_time(out, w->back_time);
    mc_buf_puts(out, " back: ");
    put_time(out, sum);
    mc_buf_puts(out, "\n  buffers   ");
    put_bytes(out, l->buffer_bytes);
    mc_buf_puts(out, " a rank at the bounds above\n");
    if (!explain) return;
    double stages[] = {w->there_time + w->back_time, l->experts_time};
    mc_buf_puts(out, "            in 4 chunks of tokens it would be ");
    put_time(out, mc_ep_pipelined(stages, 2, 4, 50e-6));
    mc_buf_puts(out, " (this runtime does not cut)\n");
    if (p->settings.links.nodes.copied || l->load.nodes == 1) return;
    double t = mc_ep_one_sided_time(&l->load, l->there.row_bytes, MC_EP_ONE_SIDED_THERE, &p->settings.links.nodes);
    double u = mc_ep_one_sided_time(&l->load, l->back.row_bytes, MC_EP_ONE_SIDED_BACK, &p->settings.links.nodes);
    mc_buf_puts(out, "            one-sided puts into fixed slots: ");
    put_time(out, t);
    mc_buf_puts(out, " there, ");
    put_time(out, u);
    mc_buf_puts(out, " back (no backend here does them)\n");
}

static void
put_rejected(const mc_ep_layer *l, mc_buf *out)
{
    const mc_ep_weighed *best = &l->ways[l->way];
    const char *head = "  rejected  ";
    for (int way = 0; way < MC_EP_N_WAYS; way++) {
        const mc_ep_weighed *w = &l->ways[way];
        if (way == (int)l->way) continue;
        mc_buf_puts(out, head);
        head = "            ";
        mc_buf_printf(out, "by %s: ", mc_ep_way_name(way));
        if (w->refused && way == MC_EP_BY_NODE) {
            mc_buf_printf(out, "%s\n", w->refused);
            continue;
        }
        put_time(out, w->there_time + w->back_time);
        mc_buf_puts(out, " there and back, not ");
        put_time(out, best->there_time + best->back_time);
        mc_buf_printf(out, "%s%s\n", w->refused ? "; " : "", w->refused ? w->refused : "");
    }
}

/* What the same mesh would take with another setting: there and back by the best way. */
static double
best_with(const mc_ep_plan *p, const mc_ep_layer *l, const mc_ep_load *load, bool strict, moec_dtype there,
          moec_dtype back)
{
    double best = -1;
    for (int way = 0; way < MC_EP_N_EXCHANGES; way++) {
        if (l->ways[way].refused) continue;
        mc_ep_flow a = mc_ep_flow_of(load, way, mc_ep_row_bytes(l->width, there));
        mc_ep_flow b = mc_ep_flow_of(load, strict ? MC_EP_BY_EXPERT : way, mc_ep_row_bytes(l->width, back));
        double t = mc_ep_flow_time(&a, load, &p->settings.links) + mc_ep_flow_time(&b, load, &p->settings.links);
        if (best < 0 || t < best) best = t;
    }
    return best;
}

static void
put_settings(const mc_ep_plan *p, const mc_ep_layer *l, mc_buf *out)
{
    bool strict = p->mesh.order == MC_EP_STRICT;
    mc_buf_puts(out, "  settings  there and back would take: ");
    if (strict) {
        mc_buf_puts(out, "order tree ");
        put_time(out, best_with(p, l, &l->load, false, MOEC_F32, MOEC_F32));
        mc_buf_puts(out, ", and in bf16 ");
        put_time(out, best_with(p, l, &l->load, false, MOEC_BF16, MOEC_BF16));
    } else {
        mc_buf_puts(out, "order strict ");
        put_time(out, best_with(p, l, &l->load, true, MOEC_F32, MOEC_F32));
        mc_buf_puts(out, ", bf16 there ");
        put_time(out, best_with(p, l, &l->load, false, MOEC_BF16, l->back.dtype));
    }
    const mc_ep_choice *c = &l->load.choice;
    int64_t nodes = l->load.nodes, keep = nodes / 2;
    if (c->groups <= 1 && nodes > 2 && c->experts % nodes == 0 && c->k <= c->experts / nodes * keep) {
        mc_ep_load limited = l->load;
        limited.choice.groups = nodes;
        limited.choice.keep = keep;
        mc_buf_printf(out, ";\n            groups(%lld, keep = %lld) in the route ", (long long)nodes, (long long)keep);
        put_time(out, best_with(p, l, &limited, strict, l->there.dtype, l->back.dtype));
    }
    mc_buf_putc(out, '\n');
}

static void
put_layer(const mc_ep_plan *p, const mc_ep_layer *l, bool explain, mc_buf *out)
{
    mc_buf_putc(out, '\n');
    put_path(out, l->first);
    if (l->times > 1) {
        mc_buf_puts(out, " .. ");
        put_path(out, l->last);
        mc_buf_printf(out, " (%lld)", (long long)l->times);
    }
    mc_buf_putc(out, '\n');
    put_router(l, out);
    put_holders(p, l, explain, out);
    put_way(p, l, out);
    put_rows(l, explain, out);
    put_traffic(l, out);
    put_times(p, l, explain, out);
    put_rejected(l, out);
    if (explain) put_settings(p, l, out);
}

/* ---- the foot ---- */

static void
put_faults(const mc_ep_plan *p, mc_buf *out)
{
    double lost = 0;
    for (size_t i = 0; i < p->layers.n; i++) {
        double alone = (double)p->layers.items[i].load.choice.experts - p->layers.items[i].covered;
        if (alone > lost) lost = alone;
    }
    mc_buf_puts(out, "  faults    every wait ends after ");
    put_time(out, p->deadline);
    mc_buf_puts(out, " (30 s, or 20 times the longest exchange): the step ends on every rank;\n");
    if (lost > 0)
        mc_buf_printf(out, "            with a rank go up to %.0f experts of a layer that no other holds\n", lost);
    else
        mc_buf_puts(out, "            every expert has a copy on another rank\n");
}

void
mc_ep_plan_text(const mc_ep_plan *p, bool explain, mc_buf *out)
{
    put_head(p, explain, out);
    for (size_t i = 0; i < p->layers.n; i++) put_layer(p, &p->layers.items[i], explain, out);
    int64_t times = 0;
    for (size_t i = 0; i < p->layers.n; i++) times += p->layers.items[i].times;
    mc_buf_puts(out, "\nstep\n");
    mc_buf_printf(out, "  forward   %lld MoE layer%s: ", (long long)times, times == 1 ? "" : "s");
    put_time(out, p->exchange_time);
    mc_buf_puts(out, " between ranks, ");
    put_time(out, p->experts_time);
    mc_buf_puts(out, " in experts\n");
    if (p->settings.trains) {
        mc_buf_puts(out, "  backward  rows of x again and of derivatives there, derivatives back: ");
        double t = 0;
        for (size_t i = 0; i < p->layers.n; i++) {
            const mc_ep_layer *l = &p->layers.items[i];
            t += (double)l->times * (2 * l->ways[l->way].there_time + l->ways[l->way].back_time);
        }
        put_time(out, t);
        mc_buf_puts(out, " between ranks\n");
    }
    put_faults(p, out);
    mc_buf_printf(out, "  plan      %016llx\n", (unsigned long long)p->hash);
}
