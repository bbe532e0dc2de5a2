/* Reads the `#:` lines of a test file, one directive each; a line that begins with a number continues the list of
 * values of the line before. The parser is a cursor over the words of these lines, with errors at the line they stand
 * in. */
#include "tests/support/exec_case.h"

#include "ir/print.h"
#include "runtime/base/dtype.h"
#include "runtime/base/file.h"
#include "runtime/base/hash.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct cursor {
    mc_exec_case *c;
    mc_diags *diags;
    mc_str text; /* the whole file */
    uint32_t file;
    size_t line_begin, at, line_end; /* the current directive line, without `#:` */
    size_t next;                     /* where the next line begins */
} cursor;

static bool
bad(cursor *p, const char *what)
{
    mc_span span = {p->file, (uint32_t)p->at, (uint32_t)p->line_end};
    return mc_error(p->diags, span, MC_E0908, "%s", what);
}

/* Moves to the next line that starts with `#:`. */
static bool
next_line(cursor *p)
{
    while (p->next < p->text.len) {
        size_t begin = p->next, end = begin;
        while (end < p->text.len && p->text.data[end] != '\n') end++;
        p->next = end + 1;
        if (!mc_str_starts(mc_str_slice(p->text, begin, end), "#:")) continue;
        p->line_begin = p->at = begin + 2;
        p->line_end = end;
        return true;
    }
    p->at = p->line_end = p->text.len;
    return false;
}

static bool
is_blank(char ch)
{
    return ch == ' ' || ch == '\t' || ch == '\r' || ch == ',';
}

/* The next word of this line; empty at its end. */
static mc_str
word(cursor *p)
{
    while (p->at < p->line_end && is_blank(p->text.data[p->at])) p->at++;
    size_t begin = p->at;
    while (p->at < p->line_end && !is_blank(p->text.data[p->at])) p->at++;
    return mc_str_slice(p->text, begin, p->at);
}

static mc_str
peek(cursor *p)
{
    size_t at = p->at;
    mc_str w = word(p);
    p->at = at;
    return w;
}

static bool
take(cursor *p, const char *text)
{
    size_t at = p->at;
    if (mc_str_is(word(p), text)) return true;
    p->at = at;
    return false;
}

static bool
to_number(mc_str w, double *out)
{
    char text[64];
    if (w.len == 0 || w.len >= sizeof text) return false;
    memcpy(text, w.data, w.len);
    text[w.len] = 0;
    char *end;
    *out = strtod(text, &end);
    return *end == 0;
}

static bool
number(cursor *p, double *out)
{
    return to_number(word(p), out) || bad(p, "a number is expected here");
}

/* f32[2, 3]; a type may hold spaces, so it is cut out by its brackets. */
static bool
tensor_type(cursor *p, mc_ref_tensor *out)
{
    int64_t dims[MC_MAX_RANK];
    int rank = 0;
    while (p->at < p->line_end && is_blank(p->text.data[p->at])) p->at++;
    size_t open = p->at;
    while (open < p->line_end && p->text.data[open] != '[') open++;
    moec_dtype dtype = mc_dtype_parse(mc_str_slice(p->text, p->at, open));
    if (open == p->line_end || dtype == MOEC_DTYPE_NONE) return bad(p, "a type such as f32[2, 3] is expected here");
    const char *s = p->text.data + open + 1, *limit = p->text.data + p->line_end;
    while (s < limit && *s != ']') {
        if (is_blank(*s)) {
            s++;
            continue;
        }
        char *end;
        if (!isdigit((unsigned char)*s) || rank == MC_MAX_RANK) return bad(p, "a dimension is expected here");
        dims[rank++] = strtoll(s, &end, 10);
        s = end;
    }
    if (s == limit) return bad(p, "']' is missing");
    p->at = (size_t)(s - p->text.data) + 1;
    return mc_ref_tensor_init(out, dtype, dims, rank, p->c->arena) || bad(p, "the tensor is too large");
}

/* `normal SEED [SCALE]`, `ids SEED LIMIT` */
static bool
generated(cursor *p, mc_ref_tensor *t, bool *was)
{
    bool normal = take(p, "normal"), ids = !normal && take(p, "ids");
    double seed, scale = 1;
    *was = normal || ids;
    if (!*was) return true;
    if (!number(p, &seed)) return false;
    if ((ids || peek(p).len) && !number(p, &scale)) return false;
    uint64_t hash = mc_hash64("input", 5, (uint64_t)seed);
    for (int64_t i = 0; i < t->n; i++) {
        double x = ids ? (double)(int64_t)(mc_noise_uniform(hash, i) * scale) : mc_noise_normal(hash, i) * scale;
        mc_ref_tensor_set(t, i, x);
    }
    return true;
}

/* The next value, going on to a following line that begins with a number. */
static bool
value(cursor *p, double *out)
{
    while (!peek(p).len) {
        cursor ahead = *p;
        if (!next_line(&ahead) || !to_number(peek(&ahead), out)) return false;
        *p = ahead;
    }
    size_t at = p->at;
    if (to_number(word(p), out)) return true;
    p->at = at;
    return false;
}

static bool
values(cursor *p, mc_ref_tensor *t)
{
    bool was;
    double x;
    if (!take(p, "=")) return bad(p, "'=' is expected here");
    if (!generated(p, t, &was) || was) return was;
    for (int64_t i = 0; i < t->n; i++) {
        if (!value(p, &x)) return bad(p, "more numbers are expected here");
        mc_ref_tensor_set(t, i, x);
    }
    return true;
}

static bool
weight(cursor *p)
{
    mc_str path = mc_str_dup(p->c->arena, word(p));
    mc_ref_tensor *t = MC_NEW(p->c->arena, mc_ref_tensor);
    if (!path.len || !tensor_type(p, t) || !values(p, t)) return false;
    return mc_map_set(&p->c->weights, path, t) || bad(p, "this weight is given twice");
}

static bool
set(cursor *p)
{
    mc_exec_set s = {.name = mc_str_dup(p->c->arena, word(p))};
    double x;
    if (!take(p, "=") || !number(p, &x)) return bad(p, "set NAME = NUMBER");
    s.value = (int64_t)x;
    mc_vec_push(p->c->arena, &p->c->sets, s);
    return true;
}

/* A row of tolerances.def, or PRINTED. */
static bool
tolerance_class(cursor *p, mc_tol_class *out)
{
    mc_str name = peek(p);
    *out = MC_TOL_PRINTED;
    if (!name.len || !isupper((unsigned char)name.data[0])) return true;
    *out = mc_tol_class_find(mc_str_dup(p->c->arena, word(p)).data);
    return *out != MC_N_TOL_CLASSES || bad(p, "no class of tolerances.def");
}

/* "=", then numbers up to the next directive. */
static bool
numbers(cursor *p, mc_ref_tensor *out)
{
    double x;
    MC_VEC(double) list = {0};
    if (!take(p, "=")) return bad(p, "'=' is expected here");
    while (value(p, &x)) mc_vec_push(p->c->arena, &list, x);
    int64_t n = (int64_t)list.n;
    if (!mc_ref_tensor_init(out, MOEC_F64, &n, 1, p->c->arena)) return bad(p, "too many numbers");
    for (int64_t i = 0; i < n; i++) mc_ref_tensor_set(out, i, list.items[i]);
    return true;
}

static bool
expect(cursor *p, mc_exec_step *step)
{
    mc_exec_expect e = {.class = MC_TOL_PRINTED};
    double index;
    e.exact = take(p, "EXACT");
    if (!e.exact && !tolerance_class(p, &e.class)) return false;
    if (!number(p, &index)) return false;
    e.result = (int)index;
    if (!numbers(p, &e.want)) return false;
    mc_vec_push(p->c->arena, &step->expects, e);
    return true;
}

static bool
gradient(cursor *p, mc_exec_step *step)
{
    mc_exec_gradient g;
    double index;
    if (!tolerance_class(p, &g.class)) return false;
    g.name = mc_str_dup(p->c->arena, word(p));
    if (mc_str_is(g.name, "input")) {
        if (!number(p, &index)) return false;
        g.name = mc_strf(p->c->arena, "input %d", (int)index);
    }
    if (!g.name.len || !numbers(p, &g.want)) return false;
    mc_vec_push(p->c->arena, &step->gradients, g);
    return true;
}

static bool
same(cursor *p, mc_exec_step *step)
{
    double a, b;
    if (!number(p, &a) || !number(p, &b)) return false;
    mc_vec_push(p->c->arena, &step->same, (mc_exec_same){(int)a, (int)b});
    return true;
}

static bool
pieces(cursor *p, mc_exec_step *step)
{
    double n;
    while (peek(p).len) {
        if (!number(p, &n)) return false;
        mc_vec_push(p->c->arena, &step->pieces, (int64_t)n);
    }
    return true;
}

static bool
directive(cursor *p)
{
    mc_exec_case *c = p->c;
    double seed;
    if (!peek(p).len) return true;
    if (take(p, "weight")) return weight(p);
    if (take(p, "set")) return set(p);
    if (take(p, "within")) return tolerance_class(p, &c->within);
    if (take(p, "synthetic")) {
        if (!number(p, &seed)) return false;
        mc_synthetic_init(&c->synthetic, c->arena, (uint64_t)seed);
        return c->has_synthetic = true;
    }
    if (take(p, "run")) {
        mc_vec_push(c->arena, &c->steps, (mc_exec_step){.fails = MC_N_CODES});
        return true;
    }
    if (!c->steps.n) return bad(p, "weight, set, within, synthetic or run is expected here");
    mc_exec_step *step = &c->steps.items[c->steps.n - 1];
    bool input = take(p, "input");
    if (input || take(p, "cotangent")) {
        mc_ref_tensor t;
        if (!tensor_type(p, &t) || !values(p, &t)) return false;
        if (input)
            mc_vec_push(c->arena, &step->inputs, t);
        else
            mc_vec_push(c->arena, &step->cotangents, t);
        return true;
    }
    if (take(p, "gradient")) return gradient(p, step);
    if (take(p, "expect")) return expect(p, step);
    if (take(p, "same")) return same(p, step);
    if (take(p, "steps")) return pieces(p, step);
    if (take(p, "fails")) {
        step->fails = mc_code_find(word(p));
        return step->fails != MC_N_CODES || bad(p, "no such code");
    }
    return bad(p, "run, input, cotangent, expect, gradient, same, steps or fails is expected here");
}

static bool
read_directives(cursor *p)
{
    while (next_line(p)) {
        if (!directive(p)) return false;
        if (peek(p).len) return bad(p, "this is not understood");
    }
    return p->c->steps.n > 0 || bad(p, "a test file needs a line '#: run'");
}

mc_exec_case *
mc_exec_load(const char *path, mc_arena *arena, mc_diags *diags)
{
    mc_buf text = {0};
    mc_fault fault = {{0}};
    if (mc_file_read(path, (size_t)1 << 24, &text, &fault) != MOEC_OK) {
        mc_error(diags, (mc_span){0}, MC_E0909, "%s", fault.text);
        mc_buf_fini(&text);
        return NULL;
    }
    mc_exec_case *c = MC_NEW(arena, mc_exec_case);
    c->arena = arena;
    c->sources.arena = arena;
    diags->sources = &c->sources;
    mc_map_init(&c->weights, arena);
    c->within = MC_TOL_MODEL;
    uint32_t file = mc_sources_add(&c->sources, mc_str_of(path), mc_buf_view(&text));
    mc_buf_fini(&text);
    cursor p = {.c = c, .diags = diags, .file = file, .text = c->sources.files.items[file - 1].text};
    c->module = mc_module_read(&c->sources, file, diags);
    if (c->module && read_directives(&p)) return c;
    mc_exec_close(c);
    return NULL;
}

void
mc_exec_close(mc_exec_case *c)
{
    if (!c) return;
    mc_module_destroy(c->module);
    c->module = NULL;
}

bool
mc_exec_weight(void *user, const mc_ref_weight_request *request, mc_ref_tensor *out)
{
    mc_exec_case *c = user;
    const mc_ref_tensor *t = mc_map_get(&c->weights, request->path);
    if (!t) return c->has_synthetic && mc_ref_synthetic_weight(&c->synthetic, request, out);
    *out = *t;
    return true;
}
