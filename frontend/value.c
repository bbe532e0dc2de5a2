/* Values of expressions: making, comparing and printing them. A dim that is constant is always an INT, so nothing else
 * has to ask. */
#include "frontend/value.h"

mc_val
mc_val_poison(void)
{
    return (mc_val){.kind = MC_VAL_POISON};
}

mc_val
mc_val_none(mc_span span)
{
    return (mc_val){.kind = MC_VAL_NONE, .span = span};
}

mc_val
mc_val_int(int64_t i, mc_span span)
{
    return (mc_val){.kind = MC_VAL_INT, .span = span, .as.i = i};
}

mc_val
mc_val_real(double r, mc_span span)
{
    return (mc_val){.kind = MC_VAL_REAL, .span = span, .as.r = r};
}

mc_val
mc_val_bool(bool b, mc_span span)
{
    return (mc_val){.kind = MC_VAL_BOOL, .span = span, .as.b = b};
}

mc_val
mc_val_text(mc_val_kind kind, mc_str s, mc_span span)
{
    return (mc_val){.kind = kind, .span = span, .as.s = s};
}

mc_val
mc_val_dim(mc_dim dim, mc_span span)
{
    if (mc_dim_is_const(dim)) return mc_val_int(mc_dim_eval(dim, NULL), span);
    return (mc_val){.kind = MC_VAL_DIM, .span = span, .as.dim = dim};
}

mc_val
mc_val_tensor(mc_value *tensor, mc_span span)
{
    if (!tensor) return mc_val_poison();
    return (mc_val){.kind = MC_VAL_TENSOR, .span = span, .as.tensor = tensor};
}

bool
mc_val_is_number(mc_val v)
{
    return v.kind == MC_VAL_INT || v.kind == MC_VAL_REAL;
}

double
mc_val_number(mc_val v)
{
    return v.kind == MC_VAL_INT ? (double)v.as.i : v.as.r;
}

bool
mc_val_is_tensor(mc_val v)
{
    return v.kind == MC_VAL_TENSOR || v.kind == MC_VAL_WREF || v.kind == MC_VAL_ROUTE;
}

bool
mc_val_eq(mc_val a, mc_val b, bool *known)
{
    *known = true;
    if (mc_val_is_number(a) && mc_val_is_number(b)) {
        if (a.kind == MC_VAL_INT && b.kind == MC_VAL_INT) return a.as.i == b.as.i;
        return mc_val_number(a) == mc_val_number(b);
    }
    bool dims = (a.kind == MC_VAL_DIM && (b.kind == MC_VAL_DIM || b.kind == MC_VAL_INT)) ||
                (b.kind == MC_VAL_DIM && a.kind == MC_VAL_INT);
    if (dims) {
        bool same = a.kind == b.kind && mc_dim_eq(a.as.dim, b.as.dim);
        *known = same;
        return same;
    }
    bool texts =
        (a.kind == MC_VAL_STRING || a.kind == MC_VAL_WORD) && (b.kind == MC_VAL_STRING || b.kind == MC_VAL_WORD);
    if (texts) return mc_str_eq(a.as.s, b.as.s);
    if (a.kind != b.kind) return false;
    switch (a.kind) {
    case MC_VAL_NONE: return true;
    case MC_VAL_BOOL: return a.as.b == b.as.b;
    case MC_VAL_RANGE: return a.as.range.lo == b.as.range.lo && a.as.range.hi == b.as.range.hi;
    case MC_VAL_LIST:
        if (a.as.list.n != b.as.list.n) return false;
        for (size_t i = 0; i < a.as.list.n && *known; i++) {
            if (!mc_val_eq(a.as.list.items[i], b.as.list.items[i], known)) return false;
        }
        return true;
    case MC_VAL_FN: return a.as.fn == b.as.fn;
    case MC_VAL_SCALING: return a.as.scaling == b.as.scaling;
    case MC_VAL_TENSOR:
    case MC_VAL_WREF:
    case MC_VAL_TUPLE:
    case MC_VAL_ROUTE: *known = false; return false;
    case MC_VAL_POISON:
    case MC_VAL_INT:
    case MC_VAL_REAL:
    case MC_VAL_STRING:
    case MC_VAL_WORD:
    case MC_VAL_DIM: return false;
    }
    return false;
}

static void
print_quoted(mc_str s, mc_buf *out)
{
    mc_buf_putc(out, '"');
    for (size_t i = 0; i < s.len; i++) {
        if (s.data[i] == '"') mc_buf_putc(out, '\\');
        mc_buf_putc(out, s.data[i]);
    }
    mc_buf_putc(out, '"');
}

/* As a person writes it: 1e-5 rather than 1e-05. */
static void
print_real(double r, mc_buf *out)
{
    mc_buf text = {0};
    mc_buf_double(&text, r);
    bool exponent = false, digits = false;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.data[i];
        bool last = i + 1 == text.len;
        bool skip = exponent && (c == '+' || (c == '0' && !digits && !last));
        if (exponent && c >= '1' && c <= '9') digits = true;
        if (c == 'e') exponent = true;
        if (!skip) mc_buf_putc(out, c);
    }
    mc_buf_fini(&text);
}

void
mc_val_print(const mc_module *m, mc_val v, mc_buf *out)
{
    switch (v.kind) {
    case MC_VAL_POISON: mc_buf_puts(out, "?"); break;
    case MC_VAL_NONE: mc_buf_puts(out, "none"); break;
    case MC_VAL_INT: mc_buf_printf(out, "%lld", (long long)v.as.i); break;
    case MC_VAL_REAL: print_real(v.as.r, out); break;
    case MC_VAL_BOOL: mc_buf_puts(out, v.as.b ? "true" : "false"); break;
    case MC_VAL_STRING: print_quoted(v.as.s, out); break;
    case MC_VAL_WORD: mc_buf_str(out, v.as.s); break;
    case MC_VAL_WREF:
        mc_buf_putc(out, '@');
        mc_buf_str(out, v.as.s);
        break;
    case MC_VAL_DIM: mc_dim_print(m, v.as.dim, out); break;
    case MC_VAL_RANGE: mc_buf_printf(out, "%lld..%lld", (long long)v.as.range.lo, (long long)v.as.range.hi); break;
    case MC_VAL_LIST:
    case MC_VAL_TUPLE:
        mc_buf_putc(out, '[');
        for (size_t i = 0; i < v.as.list.n; i++) {
            if (i) mc_buf_puts(out, ", ");
            mc_val_print(m, v.as.list.items[i], out);
        }
        mc_buf_putc(out, ']');
        break;
    case MC_VAL_TENSOR: mc_type_print(m, v.as.tensor->type, out); break;
    case MC_VAL_FN: mc_buf_str(out, v.as.fn->name); break;
    case MC_VAL_ROUTE: mc_buf_puts(out, "route"); break;
    case MC_VAL_SCALING: mc_buf_puts(out, v.as.scaling->kind); break;
    }
}

mc_str
mc_val_str(const mc_module *m, mc_val v, mc_arena *arena)
{
    mc_buf text = {0};
    mc_val_print(m, v, &text);
    mc_str copy = mc_str_dup(arena, mc_buf_view(&text));
    mc_buf_fini(&text);
    return copy;
}

const char *
mc_val_kind_text(mc_val v)
{
    switch (v.kind) {
    case MC_VAL_POISON: return "a faulty value";
    case MC_VAL_NONE: return "none";
    case MC_VAL_INT: return "a whole number";
    case MC_VAL_REAL: return "a number";
    case MC_VAL_BOOL: return "true or false";
    case MC_VAL_STRING: return "a string";
    case MC_VAL_WORD: return "a word";
    case MC_VAL_DIM: return "a dimension known only at run time";
    case MC_VAL_RANGE: return "a range";
    case MC_VAL_LIST: return "a list";
    case MC_VAL_TENSOR: return "a tensor";
    case MC_VAL_WREF: return "a weight";
    case MC_VAL_TUPLE: return "several tensors";
    case MC_VAL_FN: return "a function";
    case MC_VAL_ROUTE: return "a route";
    case MC_VAL_SCALING: return "a rotary scaling";
    }
    return "a value";
}
