/* A plan as JSON: the same numbers as the text, unrounded, in SI units (bytes, seconds). */
#include "passes/ep/plan.h"

static void
put_string(mc_buf *out, mc_str s)
{
    mc_buf_putc(out, '"');
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.data[i];
        if (c == '"' || c == '\\')
            mc_buf_printf(out, "\\%c", c);
        else if (c < 0x20)
            mc_buf_printf(out, "\\u%04x", c);
        else
            mc_buf_putc(out, (char)c);
    }
    mc_buf_putc(out, '"');
}

static void
put_number(mc_buf *out, const char *key, double value)
{
    mc_buf_printf(out, ",\"%s\":", key);
    if (value == (double)(int64_t)value)
        mc_buf_printf(out, "%lld", (long long)value);
    else
        mc_buf_printf(out, "%.9g", value);
}

static void
put_text(mc_buf *out, const char *key, const char *value)
{
    mc_buf_printf(out, ",\"%s\":", key);
    put_string(out, mc_str_of(value));
}

static void
put_link(mc_buf *out, const char *key, const mc_ep_link *l)
{
    mc_buf_printf(out, ",\"%s\":{\"row\":\"%s\",\"measured\":%s", key, l->name, l->measured ? "true" : "false");
    put_number(out, "bytes_per_second", l->rate * 1e9);
    put_number(out, "latency", l->latency * 1e-6);
    put_text(out, "per", l->per_node ? "node" : "rank");
    put_text(out, "source", l->source);
    mc_buf_putc(out, '}');
}

static void
put_head(const mc_ep_plan *p, mc_buf *out)
{
    const mc_ep_mesh *m = &p->mesh;
    const mc_ep_links *l = &p->settings.links;
    mc_buf_puts(out, "{\"model\":");
    put_string(out, p->model);
    mc_buf_printf(out, ",\"hash\":\"%016llx\",\"mesh\":{\"ep\":%lld,\"dp\":%lld,\"nodes\":%lld,\"per_node\":%lld",
                  (unsigned long long)p->hash, (long long)m->ep, (long long)m->dp, (long long)m->nodes,
                  (long long)m->per_node);
    mc_buf_printf(out, ",\"redundant\":%lld,\"layout\":\"%s\",\"order\":\"%s\"}", (long long)m->redundant,
                  m->round_robin ? "round_robin" : "contiguous", m->order == MC_EP_TREE ? "tree" : "strict");
    put_number(out, "tokens", (double)p->settings.tokens);
    mc_buf_printf(out, ",\"trains\":%s", p->settings.trains ? "true" : "false");
    put_link(out, "nodes", &l->nodes);
    put_link(out, "fabric", &l->fabric);
    mc_buf_printf(out, ",\"ranks\":{\"row\":\"%s\",\"measured\":%s", l->ranks.name,
                  l->ranks.measured ? "true" : "false");
    put_number(out, "flops", l->ranks.compute * 1e12);
    put_number(out, "memory_bytes_per_second", l->ranks.memory * 1e9);
    put_text(out, "source", l->ranks.source);
    mc_buf_puts(out, "},\"layers\":[");
}

static void
put_wire(mc_buf *out, const char *key, const mc_ep_wire *w)
{
    mc_buf_printf(out, ",\"%s\":{\"dtype\":\"%s\"", key, moec_dtype_name(w->dtype));
    put_number(out, "row_bytes", w->row_bytes);
    put_text(out, "why", w->why);
    mc_buf_putc(out, '}');
}

static void
put_ways(const mc_ep_layer *l, mc_buf *out)
{
    mc_buf_puts(out, ",\"ways\":[");
    for (int way = 0; way < MC_EP_N_WAYS; way++) {
        const mc_ep_weighed *w = &l->ways[way];
        mc_buf_printf(out, "%s{\"way\":\"%s\"", way ? "," : "", mc_ep_way_name(way));
        put_number(out, "rows", w->there.rows);
        put_number(out, "there_nodes_bytes", w->there.nodes);
        put_number(out, "there_fabric_bytes", w->there.fabric);
        put_number(out, "there_seconds", w->there_time);
        put_number(out, "back_nodes_bytes", w->back.nodes);
        put_number(out, "back_fabric_bytes", w->back.fabric);
        put_number(out, "back_seconds", w->back_time);
        if (w->refused) put_text(out, "refused", w->refused);
        mc_buf_putc(out, '}');
    }
    mc_buf_putc(out, ']');
}

static void
put_placed(const mc_ep_layer *l, mc_buf *out)
{
    mc_buf_puts(out, ",\"placed\":[");
    for (int64_t r = 0; r < l->load.ranks; r++) {
        mc_buf_puts(out, r ? ",[" : "[");
        for (int64_t s = 0; s < l->slots; s++) mc_buf_printf(out, "%s%d", s ? "," : "", l->placed[r * l->slots + s]);
        mc_buf_putc(out, ']');
    }
    mc_buf_putc(out, ']');
}

static void
put_layer(const mc_ep_layer *l, mc_buf *out)
{
    const mc_ep_choice *c = &l->load.choice;
    mc_buf_puts(out, "{\"first\":");
    put_string(out, l->first);
    mc_buf_puts(out, ",\"last\":");
    put_string(out, l->last);
    put_number(out, "layers", (double)l->times);
    put_number(out, "experts", (double)c->experts);
    put_number(out, "k", (double)c->k);
    if (c->groups > 1) {
        put_number(out, "groups", (double)c->groups);
        put_number(out, "keep", (double)c->keep);
    }
    put_number(out, "width", (double)l->width);
    put_number(out, "inner", (double)l->inner);
    put_text(out, "weights", moec_dtype_name(l->dtype));
    put_text(out, "way", mc_ep_way_name(l->way));
    put_wire(out, "there", &l->there);
    put_wire(out, "back", &l->back);
    put_number(out, "rows", l->rows);
    put_number(out, "rows_bound", l->most_rows);
    put_number(out, "assignments", l->assignments);
    put_number(out, "assignments_bound", l->most_assignments);
    put_number(out, "there_nodes_bytes_bound", l->most_sent);
    put_number(out, "back_nodes_bytes_bound", l->most_back);
    put_number(out, "experts_seconds", l->experts_time);
    put_number(out, "buffer_bytes", l->buffer_bytes);
    put_number(out, "covered_after_loss", l->covered);
    put_ways(l, out);
    put_placed(l, out);
    mc_buf_putc(out, '}');
}

void
mc_ep_plan_json(const mc_ep_plan *p, mc_buf *out)
{
    put_head(p, out);
    for (size_t i = 0; i < p->layers.n; i++) {
        if (i) mc_buf_putc(out, ',');
        put_layer(&p->layers.items[i], out);
    }
    mc_buf_putc(out, ']');
    put_number(out, "exchange_seconds", p->exchange_time);
    put_number(out, "experts_seconds", p->experts_time);
    put_number(out, "deadline_seconds", p->deadline);
}
