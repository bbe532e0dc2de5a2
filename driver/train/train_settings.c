/* The front end has checked names and words, so the reader here is plain; what it cannot read it refuses. */
#include "driver/train/train_settings.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ARGS = 8, MAX_LIST = 4 };

typedef struct argument {
    mc_str key; /* empty: the value before the named ones */
    mc_str word;
    double numbers[MAX_LIST];
    int n_numbers;
    uint64_t whole; /* the last number, when it is a natural one: exact */
} argument;

/* A line: its name, its own value (word or number), and named values, those inside brackets included. */
typedef struct line {
    mc_str name;
    argument value, args[MAX_ARGS];
    int n_args;
} line;

typedef struct reader {
    const char *p;
    mc_fault *fault;
} reader;

static moec_status
malformed(const reader *r)
{
    return mc_fail(r->fault, MOEC_ERR_SYNTAX, "train: cannot read '%.40s'", r->p);
}

static bool
take(reader *r, char c)
{
    while (*r->p == ' ') r->p++;
    if (*r->p != c) return false;
    r->p++;
    return true;
}

static bool
is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static mc_str
take_word(reader *r)
{
    while (*r->p == ' ') r->p++;
    const char *begin = r->p;
    while (is_letter(*r->p) || (r->p > begin && *r->p >= '0' && *r->p <= '9')) r->p++;
    return (mc_str){begin, (size_t)(r->p - begin)};
}

static bool
take_number(reader *r, argument *a)
{
    char *end;
    double number = strtod(r->p, &end);
    if (end == r->p || !isfinite(number) || a->n_numbers == MAX_LIST) return false;
    a->whole = strtoull(r->p, NULL, 10);
    a->numbers[a->n_numbers++] = number;
    r->p = end;
    return true;
}

/* word, number or [number, ...] */
static bool
take_value(reader *r, argument *a)
{
    while (*r->p == ' ') r->p++;
    if (is_letter(*r->p)) {
        a->word = take_word(r);
        return true;
    }
    if (!take(r, '[')) return take_number(r, a);
    do
        if (!take_number(r, a)) return false;
    while (take(r, ','));
    return take(r, ']');
}

static bool
take_named(reader *r, line *l)
{
    if (l->n_args == MAX_ARGS) return false;
    argument *a = &l->args[l->n_args++];
    a->key = take_word(r);
    return a->key.len && take(r, '=') && take_value(r, a);
}

static bool
take_line(reader *r, line *l)
{
    *l = (line){.name = take_word(r)};
    if (!l->name.len || !take_value(r, &l->value)) return false;
    if (take(r, '(')) {
        do
            if (!take_named(r, l)) return false;
        while (take(r, ','));
        if (!take(r, ')')) return false;
    }
    while (take(r, ','))
        if (!take_named(r, l)) return false;
    return true;
}

/* ---- meaning ---- */

static moec_status
refuse(mc_fault *fault, const line *l, const char *why)
{
    return mc_fail(fault, MOEC_ERR_UNSUPPORTED, "train: %.*s %.*s: %s", MC_FMT(l->name), MC_FMT(l->value.word), why);
}

static const argument *
find(const line *l, const char *key)
{
    for (int i = 0; i < l->n_args; i++)
        if (mc_str_is(l->args[i].key, key)) return &l->args[i];
    return NULL;
}

static void
number(const line *l, const char *key, double *out)
{
    const argument *a = find(l, key);
    if (a && a->n_numbers == 1) *out = a->numbers[0];
}

static moec_status
read_aux(const line *l, mc_train_settings *out, mc_fault *fault)
{
    double weight = 0;
    number(l, "weight", &weight);
    if (out->aux_weight != 0 && weight != out->aux_weight)
        return refuse(fault, l, "two balance losses of different weight are not executed");
    out->aux_weight = weight;
    return MOEC_OK;
}

static moec_status
read_bias(const line *l, mc_train_settings *out, mc_fault *fault)
{
    const argument *schedule = find(l, "schedule");
    out->has_bias = true;
    out->bias_rule = mc_str_is(l->value.word, "ema") ? MOEC_BIAS_EMA : MOEC_BIAS_SIGN;
    number(l, "rate", &out->bias_rate);
    number(l, "decay", &out->bias_decay);
    number(l, "until", &out->bias_until);
    if (schedule && mc_str_is(schedule->word, "cosine")) out->bias_schedule = MC_BIAS_COSINE;
    if (schedule && mc_str_is(schedule->word, "warmup")) out->bias_schedule = MC_BIAS_WARMUP;
    if (out->bias_decay >= 1) return refuse(fault, l, "decay is below 1");
    return MOEC_OK;
}

static moec_status
read_optimizer(const line *l, mc_train_settings *out, mc_fault *fault)
{
    mc_adamw *a = &out->optimizer;
    const argument *betas = find(l, "betas");
    number(l, "lr", &a->lr);
    number(l, "eps", &a->eps);
    number(l, "decay", &a->decay);
    number(l, "clip", &a->clip);
    if (betas && betas->n_numbers != 2) return refuse(fault, l, "betas is a list of two numbers");
    if (betas) {
        a->beta1 = betas->numbers[0];
        a->beta2 = betas->numbers[1];
    }
    bool good = a->lr >= 0 && a->eps >= 0 && a->decay >= 0 && a->clip >= 0 && a->beta1 >= 0 && a->beta1 < 1 &&
                a->beta2 >= 0 && a->beta2 < 1;
    return good ? MOEC_OK
                : refuse(fault, l, "lr, eps, decay and clip are not negative, betas are in 0 .. 1, without 1");
}

static moec_status
read_schedule(const line *l, mc_train_settings *out, mc_fault *fault)
{
    mc_schedule *s = &out->schedule;
    s->kind = mc_str_is(l->value.word, "cosine")   ? MC_SCHEDULE_COSINE
              : mc_str_is(l->value.word, "linear") ? MC_SCHEDULE_LINEAR
                                                   : MC_SCHEDULE_CONSTANT;
    number(l, "warmup", &s->warmup);
    number(l, "floor", &s->floor);
    number(l, "steps", &s->steps);
    bool good = s->warmup >= 0 && s->floor >= 0 && s->floor <= 1 && s->steps >= 0;
    return good ? MOEC_OK : refuse(fault, l, "warmup and steps count updates, floor is a share of lr in 0 .. 1");
}

static moec_status
read_line(const line *l, mc_train_settings *out, mc_fault *fault)
{
    double value = l->value.n_numbers ? l->value.numbers[0] : 0;
    if (mc_str_is(l->name, "loss"))
        return mc_str_is(l->value.word, "cross_entropy")
                   ? MOEC_OK
                   : refuse(fault, l,
                            "moec train knows cross_entropy; other losses are for a loop of your own "
                            "(moec/train.h)");
    if (mc_str_is(l->name, "aux")) return read_aux(l, out, fault);
    if (mc_str_is(l->name, "bias")) return read_bias(l, out, fault);
    if (mc_str_is(l->name, "optimizer")) return read_optimizer(l, out, fault);
    if (mc_str_is(l->name, "schedule")) return read_schedule(l, out, fault);
    if (l->value.n_numbers != 1) return refuse(fault, l, "moec train does not execute this setting");
    if (mc_str_is(l->name, "z")) {
        out->z_weight = value;
    } else if (mc_str_is(l->name, "seed")) {
        out->seed = l->value.whole;
    } else if (!mc_str_is(l->name, "dropout") && !mc_str_is(l->name, "expert_dropout")) {
        return refuse(fault, l, "moec train does not execute this setting");
    } else if (value != 0) {
        return mc_fail(fault, MOEC_ERR_UNSUPPORTED, "train: %.*s %g: moec train does not execute it; set it to 0",
                       MC_FMT(l->name), value);
    }
    return MOEC_OK;
}

mc_train_settings
mc_train_settings_default(void)
{
    return (mc_train_settings){.bias_rate = 1e-3,
                               .bias_decay = 0.99,
                               .bias_until = HUGE_VAL,
                               .optimizer = mc_adamw_default(),
                               .schedule = {.kind = MC_SCHEDULE_CONSTANT}};
}

moec_status
mc_train_settings_parse(const char *text, mc_train_settings *out, mc_fault *fault)
{
    reader r = {text, fault};
    *out = mc_train_settings_default();
    while (*r.p) {
        line l;
        if (!take_line(&r, &l)) return malformed(&r);
        moec_status s = read_line(&l, out, fault);
        if (s != MOEC_OK) return s;
        if (*r.p && !take(&r, ';')) return malformed(&r);
        while (*r.p == ' ') r.p++;
    }
    return MOEC_OK;
}
