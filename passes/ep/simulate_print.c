/* simulate_print: what a simulation found, as a table and as JSON. */
#include "passes/ep/simulate.h"

#include <stdio.h>

static const char *const ways[] = {"expert", "rank", "node"};

static double
ratio(const mc_sim_stat *s)
{
    return s->mean > 0 ? s->most / s->mean : 1;
}

static void
put_time(mc_buf *out, double seconds, int width)
{
    char text[32];
    const char *unit = seconds < 1e-3 ? "us" : seconds < 1 ? "ms" : "s";
    double scaled = seconds < 1e-3 ? seconds * 1e6 : seconds < 1 ? seconds * 1e3 : seconds;
    snprintf(text, sizeof text, "%.*f %s", scaled < 10 ? 2 : scaled < 100 ? 1 : 0, scaled, unit);
    mc_buf_printf(out, " %*s", width, text);
}

static void
put_stat(mc_buf *out, const char *what, const mc_sim_stat *s, const char *of)
{
    mc_buf_printf(out, "  %-24s %12.1f %12.0f %8.2f  %s %lld\n", what, s->mean, s->most, ratio(s), of,
                  (long long)s->who);
}

static void
put_ways(const mc_sim_result *r, mc_buf *out)
{
    mc_buf_printf(out, "  %-8s %12s %8s %12s %8s %10s %10s %10s\n", "way", "other nodes", "most/", "same node", "most/",
                  "there", "back", "step");
    for (int w = 0; w < MC_EP_N_EXCHANGES; w++) {
        const mc_sim_way *way = &r->ways[w];
        const mc_sim_stat *nodes = way->nodes_in.most > way->nodes_out.most ? &way->nodes_in : &way->nodes_out;
        mc_buf_printf(out, "  %-8s %12.1f %8.2f %12.1f %8.2f", ways[w], nodes->mean, ratio(nodes), way->fabric_in.mean,
                      ratio(&way->fabric_in));
        put_time(out, way->there, 10);
        put_time(out, way->back, 10);
        put_time(out, way->step, 10);
        mc_buf_puts(out, w == r->best ? "  <-\n" : "\n");
    }
}

void
mc_sim_print(const mc_sim_setup *s, const mc_sim_result *r, const char *traffic, mc_sim_layout layout, mc_buf *out)
{
    const mc_ep_load *l = &s->load;
    const mc_ep_choice *c = &l->choice;
    mc_buf_printf(out, "simulated: %lld ranks on %lld nodes, %lld tokens each, %lld of %lld experts",
                  (long long)l->ranks, (long long)l->nodes, (long long)l->tokens, (long long)c->k,
                  (long long)c->experts);
    if (c->groups > 1 && c->keep > 0 && c->keep < c->groups)
        mc_buf_printf(out, " in %lld of %lld groups", (long long)c->keep, (long long)c->groups);
    mc_buf_printf(out, "\n  traffic %s; placement %s, %lld slots a rank\n", traffic, mc_sim_layout_name(layout),
                  (long long)s->slots_per_rank);
    mc_buf_printf(out, "  a token goes to %.2f ranks on %.2f nodes; experts take", r->ranks_hit, r->nodes_hit);
    put_time(out, r->experts_time, 0);
    mc_buf_printf(out, " on the busiest rank\n\n  %-24s %12s %12s %8s\n", "of a rank", "mean", "most", "most/");
    put_stat(out, "rows received", &r->rows, "rank");
    put_stat(out, "assignments computed", &r->assignments, "rank");
    put_stat(out, "assignments of an expert", &r->experts, "expert");
    mc_buf_putc(out, '\n');
    put_ways(r, out);
}

static void
put_json_stat(mc_buf *out, const char *key, const mc_sim_stat *s)
{
    mc_buf_printf(out, "\"%s\":{\"mean\":%.9g,\"most\":%.0f,\"who\":%lld}", key, s->mean, s->most, (long long)s->who);
}

void
mc_sim_json(const mc_sim_setup *s, const mc_sim_result *r, const char *traffic, mc_sim_layout layout, mc_buf *out)
{
    const mc_ep_load *l = &s->load;
    mc_buf_puts(out, "{\"traffic\":\"");
    for (const char *p = traffic; *p; p++) {
        if ((unsigned char)*p < 0x20)
            mc_buf_printf(out, "\\u%04x", (unsigned)*p);
        else
            mc_buf_printf(out, *p == '"' || *p == '\\' ? "\\%c" : "%c", *p);
    }
    mc_buf_printf(out,
                  "\",\"placement\":\"%s\",\"ranks\":%lld,\"nodes\":%lld,\"tokens\":%lld,\"slots_per_rank\":%lld,"
                  "\"ranks_hit\":%.9g,\"nodes_hit\":%.9g,\"experts_time\":%.9g,",
                  mc_sim_layout_name(layout), (long long)l->ranks, (long long)l->nodes, (long long)l->tokens,
                  (long long)s->slots_per_rank, r->ranks_hit, r->nodes_hit, r->experts_time);
    put_json_stat(out, "rows", &r->rows);
    mc_buf_putc(out, ',');
    put_json_stat(out, "assignments", &r->assignments);
    mc_buf_putc(out, ',');
    put_json_stat(out, "experts", &r->experts);
    mc_buf_printf(out, ",\"best\":\"%s\",\"ways\":[", ways[r->best]);
    for (int w = 0; w < MC_EP_N_EXCHANGES; w++) {
        const mc_sim_way *way = &r->ways[w];
        mc_buf_printf(out, "%s{\"way\":\"%s\",", w ? "," : "", ways[w]);
        put_json_stat(out, "nodes_out", &way->nodes_out);
        mc_buf_putc(out, ',');
        put_json_stat(out, "nodes_in", &way->nodes_in);
        mc_buf_putc(out, ',');
        put_json_stat(out, "fabric_in", &way->fabric_in);
        mc_buf_printf(out, ",\"there\":%.9g,\"back\":%.9g,\"step\":%.9g}", way->there, way->back, way->step);
    }
    mc_buf_puts(out, "]}");
}
