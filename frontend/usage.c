/* Facts read off the tree without evaluating it: which blocks are attention, which use each other in a circle, and
 * what is declared but never named. */
#include "frontend/elab.h"
#include "frontend/walk.h"

/* ---- blocks: attention, recursion ---- */

typedef struct block_visit {
    mc_elab *e;
    mc_block *block;
    MC_VEC(mc_block *) named;
} block_visit;

static void
see_block(void *context, const mc_expr *x)
{
    static const char *const mixers[] = {"sdpa", "cache", "selective_scan", "delta_scan", "conv1d"};
    block_visit *v = context;
    if (x->kind != MC_EXPR_NAME) return;
    mc_block *b = mc_elab_find_block(v->e, x->as.text);
    if (b) {
        mc_vec_push(v->e->arena, &v->named, b);
        return;
    }
    for (size_t i = 0; i < sizeof mixers / sizeof mixers[0]; i++) {
        if (mc_str_is(x->as.text, mixers[i])) v->block->has_attention = true;
    }
}

/* A formal or a variable of the same name as a block hides it; only that makes a name here no use of the block. */
static bool
is_local(const mc_item *item, mc_str name)
{
    for (const mc_formal *f = item->formals; f; f = f->next) {
        if (mc_str_eq(f->name.text, name)) return true;
    }
    return false;
}

typedef struct facts {
    mc_elab *e;
    mc_map state; /* block name -> &busy or &done */
    mc_strs path;
} facts;

static const char busy[] = "busy", done[] = "done";

static void
visit_block(facts *f, mc_block *b)
{
    mc_elab *e = f->e;
    mc_str name = b->item->name.text;
    const char *state = mc_map_get(&f->state, name);
    if (state == done || f->path.n >= MC_MAX_BLOCK_DEPTH) return;
    if (state == busy) {
        mc_vec_push(e->arena, &f->path, name);
        mc_elab_error(e, b->item->name.span, MC_E0208, "block '%.*s' uses itself: %.*s", MC_FMT(name),
                      MC_FMT(mc_elab_join(e, f->path.items, f->path.n)));
        f->path.n--;
        e->fatal = true;
        return;
    }
    mc_map_set(&f->state, name, (void *)busy);
    mc_vec_push(e->arena, &f->path, name);
    block_visit v = {.e = e, .block = b};
    mc_walk_item(b->item, see_block, &v);
    b->uses_attention = b->has_attention;
    for (size_t i = 0; i < v.named.n && !e->fatal; i++) {
        if (is_local(b->item, v.named.items[i]->item->name.text)) continue;
        visit_block(f, v.named.items[i]);
        b->uses_attention = b->uses_attention || v.named.items[i]->uses_attention;
    }
    f->path.n--;
    mc_map_set(&f->state, name, (void *)done);
}

void
mc_elab_block_facts(mc_elab *e)
{
    facts f = {.e = e};
    mc_map_init(&f.state, e->arena);
    for (size_t i = 0; i < e->prelude.n; i++) visit_block(&f, mc_elab_find_block(e, e->prelude.entries[i].key));
    for (size_t i = 0; i < e->blocks.n && !e->fatal; i++) visit_block(&f, e->blocks.entries[i].value);
}

/* ---- what is never used ---- */

typedef struct name_visit {
    mc_elab *e;
    mc_map *names;
} name_visit;

static void
see_name(void *context, const mc_expr *x)
{
    name_visit *v = context;
    if (x->kind == MC_EXPR_NAME) mc_map_set(v->names, x->as.text, v->e);
}

static void
unused_formals(mc_elab *e, const mc_item *item)
{
    mc_map names;
    mc_map_init(&names, e->arena);
    name_visit v = {e, &names};
    mc_walk_item(item, see_name, &v);
    for (const mc_formal *f = item->formals; f; f = f->next) {
        if (mc_map_has(&names, f->name.text)) continue;
        mc_elab_warn(e, f->name.span, MC_W0303, "'%.*s' of '%.*s' is never used", MC_FMT(f->name.text),
                     MC_FMT(item->name.text));
    }
}

static void
unreachable(mc_elab *e, const mc_stmt *s)
{
    for (; s; s = s->next) {
        if (s->body) unreachable(e, s->body);
        if (s->otherwise) unreachable(e, s->otherwise);
        if (s->kind == MC_STMT_RETURN && s->next)
            mc_elab_warn(e, s->next->span, MC_W0303, "nothing after 'return' is ever run");
    }
}

static bool
source_names(mc_str text, mc_str name) /* does {=name} stand in the pattern? */
{
    for (size_t i = 0; i + 2 + name.len < text.len; i++) {
        bool open = text.data[i] == '{' && text.data[i + 1] == '=' && text.data[i + 2 + name.len] == '}';
        if (open && mc_str_eq(mc_str_slice(text, i + 2, i + 2 + name.len), name)) return true;
    }
    return false;
}

static bool
in_rules(mc_elab *e, mc_str name)
{
    for (size_t i = 0; i < e->items.n; i++) {
        for (const mc_rule *r = e->items.items[i]->rules; r; r = r->next) {
            if (source_names(r->source.text, name)) return true;
            for (const mc_name_list *t = r->targets; t; t = t->next) {
                if (source_names(t->word.text, name)) return true;
            }
        }
    }
    return false;
}

void
mc_elab_usage(mc_elab *e)
{
    mc_map names;
    mc_map_init(&names, e->arena);
    name_visit v = {e, &names};
    for (size_t i = 0; i < e->items.n; i++) {
        const mc_item *item = e->items.items[i];
        mc_walk_item(item, see_name, &v);
        if (item->kind == MC_ITEM_DEFAULT) mc_map_set(&names, item->name.text, e);
    }
    for (size_t i = 0; i < e->items.n; i++) {
        const mc_item *item = e->items.items[i];
        bool declared = item->kind == MC_ITEM_PARAM || item->kind == MC_ITEM_BLOCK || item->kind == MC_ITEM_DIM;
        bool own = item->span.file == e->main_file; /* a shared file may offer more than this model takes */
        if (declared && own && !mc_map_has(&names, item->name.text) && !in_rules(e, item->name.text))
            mc_elab_warn(e, item->name.span, MC_W0303, "'%.*s' is never used", MC_FMT(item->name.text));
        if (item->kind == MC_ITEM_BLOCK || item->kind == MC_ITEM_MODEL) {
            unused_formals(e, item);
            unreachable(e, item->body);
        }
    }
}
