/* What place and train say, held against the model: only now all experts and routes are known. Then the settings become
 * metas of the module. */
#include "frontend/elab.h"

static const mc_axis *
find_axis(mc_elab *e, mc_str name)
{
    for (size_t i = 0; i < e->mesh.n; i++) {
        if (mc_str_eq(e->mesh.items[i].name, name)) return &e->mesh.items[i];
    }
    return NULL;
}

static int64_t
redundant_experts(const mc_elab *e)
{
    int64_t n = 0;
    for (size_t i = 0; i < e->place.n; i++) {
        const mc_setting_text *t = &e->place.items[i];
        for (size_t k = 0; mc_str_is(t->name, "redundant") && k < t->text.len && n < 1 << 20; k++)
            n = n * 10 + (t->text.data[k] - '0');
    }
    return n;
}

static void
check_experts(mc_elab *e, mc_word over, const mc_axis *axis)
{
    int64_t extra = redundant_experts(e);
    for (size_t i = 0; i < e->moes.n; i++) {
        const mc_moe_info *moe = &e->moes.items[i];
        if ((moe->experts + extra) % axis->size == 0) continue;
        if (extra)
            mc_elab_error(e, over.span, MC_E0341, "%lld experts and %lld redundant ones do not divide over %.*s = %lld",
                          (long long)moe->experts, (long long)extra, MC_FMT(axis->name), (long long)axis->size);
        else
            mc_elab_error(e, over.span, MC_E0341, "%lld experts do not divide over %.*s = %lld",
                          (long long)moe->experts, MC_FMT(axis->name), (long long)axis->size);
        mc_elab_note(e, moe->span, "the experts are routed here");
        return;
    }
}

static void
check_place(mc_elab *e)
{
    mc_strs names = {0};
    for (size_t i = 0; i < e->mesh.n; i++) mc_vec_push(e->arena, &names, e->mesh.items[i].name);
    for (size_t i = 0; i < e->axis_uses.n; i++) {
        mc_word word = e->axis_uses.items[i].word;
        const mc_axis *axis = find_axis(e, word.text);
        if (!axis)
            mc_elab_error(e, word.span, MC_E0201, "the mesh has no axis '%.*s'%s%.*s", MC_FMT(word.text),
                          names.n ? "; it has " : "", MC_FMT(mc_elab_join(e, names.items, names.n)));
        else if (e->axis_uses.items[i].of_experts)
            check_experts(e, word, axis);
    }
}

static void
check_train(mc_elab *e)
{
    for (size_t i = 0; i < e->train.n; i++) {
        const mc_setting_text *t = &e->train.items[i];
        if (!mc_str_is(t->name, "bias")) continue;
        bool found = false;
        for (size_t k = 0; k < e->moes.n; k++) found = found || e->moes.items[k].has_bias;
        if (found) continue;
        mc_elab_error(e, t->span, MC_E0342, "'bias %.*s' needs a select_bias or logit_bias stage; no route has one",
                      MC_FMT(t->text));
        if (e->moes.n) mc_elab_note(e, e->moes.items[0].span, "this route, for example");
    }
    for (size_t i = 0; i < e->precision.n && e->trains; i++) {
        const mc_setting_text *t = &e->precision.items[i];
        if (mc_str_is(t->name, "router") && !mc_str_is(t->text, "f32"))
            mc_elab_warn(e, t->span, MC_W0304, "a router in %.*s drifts in training; f32 costs next to nothing",
                         MC_FMT(t->text));
    }
}

static void
print_mesh(const mc_elab *e, mc_buf *out)
{
    for (size_t i = 0; i < e->mesh.n; i++)
        mc_buf_printf(out, "%s%.*s = %lld", i ? ", " : "", MC_FMT(e->mesh.items[i].name),
                      (long long)e->mesh.items[i].size);
}

static void
join_settings(mc_elab *e, const char *key, const mc_setting_texts *list)
{
    mc_buf text = {0};
    for (size_t i = 0; i < list->n; i++) {
        const mc_setting_text *t = &list->items[i];
        mc_buf_printf(&text, "%s%.*s ", i ? "; " : "", MC_FMT(t->name));
        if (mc_str_is(t->name, "mesh"))
            print_mesh(e, &text);
        else
            mc_buf_str(&text, t->text);
    }
    if (list->n) mc_module_set_meta(e->module, mc_str_of(key), mc_buf_view(&text));
    mc_buf_fini(&text);
}

void
mc_elab_settings_check(mc_elab *e)
{
    check_place(e);
    check_train(e);
    for (size_t i = 0; i < e->precision.n; i++) {
        const mc_setting_text *t = &e->precision.items[i];
        mc_module_set_meta(e->module, mc_strf(e->arena, "precision.%.*s", MC_FMT(t->name)), t->text);
    }
    join_settings(e, "place", &e->place);
    join_settings(e, "train", &e->train);
}
