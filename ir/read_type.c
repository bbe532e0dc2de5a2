/* Tokens, dimensions and types of .moir. Sizes are bounded here, so that no later product of them overflows. */
#include "ir/read_impl.h"
#include "runtime/base/dtype.h"

static const int64_t max_extent = (int64_t)1 << 48;

void
mc_read_advance(mc_reader *r)
{
    r->last_end = r->token.span.end;
    r->token = mc_moir_next(&r->lexer);
}

bool
mc_read_is(const mc_reader *r, mc_moir_kind kind, const char *text)
{
    return r->token.kind == kind && mc_str_is(r->token.text, text);
}

bool
mc_read_accept(mc_reader *r, mc_moir_kind kind, const char *text)
{
    if (!mc_read_is(r, kind, text)) return false;
    mc_read_advance(r);
    return true;
}

bool
mc_read_malformed(mc_reader *r, const char *wanted)
{
    if (r->lexer.failed) return false;
    r->lexer.failed = true;
    if (r->token.kind == MC_MOIR_END) {
        return mc_error(r->diags, r->token.span, MC_E0401, "expected %s, but the text ends", wanted);
    }
    mc_str found = mc_str_slice(r->token.text, 0, 40);
    return mc_error(r->diags, r->token.span, MC_E0401, "expected %s, but found '%.*s'", wanted, MC_FMT(found));
}

bool
mc_read_expect(mc_reader *r, mc_moir_kind kind, const char *text)
{
    if (mc_read_accept(r, kind, text)) return true;
    return mc_read_malformed(r, mc_strf(r->arena, "'%s'", text).data);
}

bool
mc_read_kind(mc_reader *r, mc_moir_kind kind, const char *wanted, mc_moir_token *out)
{
    *out = r->token;
    if (r->token.kind != kind) return mc_read_malformed(r, wanted);
    mc_read_advance(r);
    return true;
}

bool
mc_read_punct(mc_reader *r, const char *text)
{
    return mc_read_expect(r, MC_MOIR_PUNCT, text);
}

bool
mc_read_index(mc_reader *r, int32_t *out)
{
    mc_moir_token token;
    if (!mc_read_kind(r, MC_MOIR_INT, "a number", &token)) return false;
    *out = (int32_t)token.integer;
    if (token.integer >= 0 && token.integer <= INT32_MAX) return true;
    r->lexer.failed = true;
    return mc_error(r->diags, token.span, MC_E0401, "this index is out of range");
}

/* One factor of a dimension: a number or a symbol. */
static bool
read_factor(mc_reader *r, mc_dim *out)
{
    mc_moir_token token = r->token;
    if (token.kind == MC_MOIR_INT) {
        mc_read_advance(r);
        *out = mc_dim_const(token.integer);
        return true;
    }
    if (!mc_read_kind(r, MC_MOIR_IDENT, "a dimension", &token)) return false;
    for (int i = 0; i < r->module->n_syms; i++) {
        if (!mc_str_eq(r->module->syms[i].name, token.text)) continue;
        *out = mc_dim_sym(i);
        return true;
    }
    r->lexer.failed = true;
    return mc_error(r->diags, token.span, MC_E0201, "'%.*s' is not declared with dim", MC_FMT(token.text));
}

bool
mc_read_dim(mc_reader *r, mc_dim *out)
{
    mc_span begin = r->token.span;
    if (!read_factor(r, out)) return false;
    while (mc_read_accept(r, MC_MOIR_PUNCT, "*")) {
        mc_dim factor;
        if (!read_factor(r, &factor)) return false;
        if (mc_dim_mul(*out, factor, out)) continue;
        r->lexer.failed = true;
        return mc_error(r->diags, begin, MC_E0314, "a product of more than %d symbols, or too large", MC_DIM_SYMS);
    }
    bool minus = mc_read_is(r, MC_MOIR_PUNCT, "-");
    if (minus || mc_read_is(r, MC_MOIR_PUNCT, "+")) {
        mc_moir_token token;
        mc_read_advance(r);
        if (!mc_read_kind(r, MC_MOIR_INT, "a number", &token)) return false;
        bool fits = token.integer > 0 && token.integer <= max_extent && !mc_dim_is_const(*out);
        if (!fits) {
            r->lexer.failed = true;
            return mc_error(r->diags, token.span, MC_E0314, "only a moderate positive number is added to symbols");
        }
        out->add = minus ? -token.integer : token.integer;
    }
    if (out->mul >= 1 && out->mul <= max_extent) return true;
    r->lexer.failed = true;
    return mc_error(r->diags, begin, MC_E0319, "a dimension must be at least 1 and at most 2^48");
}

bool
mc_read_type(mc_reader *r, const mc_type **out)
{
    mc_moir_token token;
    if (!mc_read_kind(r, MC_MOIR_IDENT, "a type", &token)) return false;
    moec_dtype dtype = mc_dtype_parse(token.text);
    mc_dim dims[MC_MAX_RANK];
    int rank = 0;
    int64_t n = 1;
    if (dtype == MOEC_DTYPE_NONE) {
        r->lexer.failed = true;
        return mc_error(r->diags, token.span, MC_E0401, "'%.*s' is not an element type", MC_FMT(token.text));
    }
    if (mc_read_accept(r, MC_MOIR_PUNCT, "[")) {
        while (!mc_read_is(r, MC_MOIR_PUNCT, "]")) {
            if (rank && !mc_read_punct(r, ",")) return false;
            mc_span at = r->token.span;
            if (rank == MC_MAX_RANK) return mc_read_malformed(r, "at most 6 dimensions");
            if (!mc_read_dim(r, &dims[rank])) return false;
            if (__builtin_mul_overflow(n, dims[rank].mul, &n) || n > max_extent) {
                r->lexer.failed = true;
                return mc_error(r->diags, at, MC_E0319, "a tensor of more than 2^48 elements");
            }
            rank++;
        }
        mc_read_advance(r);
    }
    *out = mc_type_get(r->module, dtype, dims, rank);
    return true;
}
