/* pattern: matching a path against a pattern of rules.h, and writing a source's name from what was captured.
 * Backtracking over at most MC_MAX_CAPTURES wildcards; the longest text is tried first. A pattern such as **a**a**a**
 * could backtrack for years, so each match may take so many steps and no more; real ones take a few hundred. */
#include "runtime/rules.h"

#include <stdio.h>
#include <string.h>

typedef enum token_kind { TOKEN_END, TOKEN_LITERAL, TOKEN_NAME, TOKEN_PART, TOKEN_ANY } token_kind;

/* The token at the start of a pattern; *len: its length. NAME: *name is what stands in the braces. */
static token_kind
token(mc_str p, size_t *len, mc_str *name)
{
    *name = (mc_str){0};
    *len = 0;
    if (!p.len) return TOKEN_END;
    if (p.data[0] == '*') {
        *len = p.len > 1 && p.data[1] == '*' ? 2 : 1;
        return *len == 2 ? TOKEN_ANY : TOKEN_PART;
    }
    if (p.data[0] == '{') {
        const char *close = memchr(p.data, '}', p.len);
        if (close) {
            *len = (size_t)(close - p.data) + 1;
            *name = mc_str_slice(p, 1, *len - 1);
            return TOKEN_NAME;
        }
    }
    *len = 1;
    return TOKEN_LITERAL;
}

static const mc_str *
captured(const mc_captures *c, mc_str name)
{
    for (int i = 0; i < c->n; i++)
        if (c->items[i].name.len && mc_str_eq(c->items[i].name, name)) return &c->items[i].text;
    return NULL;
}

enum { MAX_STEPS = 1000000 };

static bool
match(mc_str pattern, mc_str path, mc_captures *c, int *steps)
{
    size_t len;
    mc_str name;
    if (++*steps > MAX_STEPS) return false;
    token_kind kind = token(pattern, &len, &name);
    if (kind == TOKEN_END) return path.len == 0;
    mc_str rest = mc_str_slice(pattern, len, pattern.len);
    if (kind == TOKEN_LITERAL)
        return path.len && path.data[0] == pattern.data[0] && match(rest, mc_str_slice(path, 1, path.len), c, steps);
    const mc_str *before = name.len ? captured(c, name) : NULL;
    if (before) {
        mc_str text = *before;
        return path.len >= text.len && mc_str_eq(mc_str_slice(path, 0, text.len), text) &&
               match(rest, mc_str_slice(path, text.len, path.len), c, steps);
    }
    if (c->n == MC_MAX_CAPTURES) return false;
    size_t longest = path.len;
    if (kind != TOKEN_ANY)
        for (longest = 0; longest < path.len && path.data[longest] != '.'; longest++) {}
    int slot = c->n++;
    for (size_t n = longest; n >= 1; n--) {
        c->items[slot] = (mc_capture){name, mc_str_slice(path, 0, n)};
        if (match(rest, mc_str_slice(path, n, path.len), c, steps)) return true;
        c->n = slot + 1;
    }
    c->n = slot;
    return false;
}

bool
mc_pattern_match(mc_str pattern, mc_str path, mc_captures *out)
{
    int steps = 0;
    out->n = 0;
    return match(pattern, path, out, &steps);
}

bool
mc_rule_source(const mc_rule *rule, const mc_captures *captures, int64_t index, char *out)
{
    size_t at = 0, len;
    int unnamed = 0;
    mc_str p = rule->source, name;
    for (token_kind kind; (kind = token(p, &len, &name)) != TOKEN_END; p = mc_str_slice(p, len, p.len)) {
        char number[24];
        mc_str text = mc_str_slice(p, 0, len);
        const mc_str *known = name.len ? captured(captures, name) : NULL;
        if (known) {
            text = *known;
        } else if (kind == TOKEN_NAME && index >= 0) {
            snprintf(number, sizeof number, "%lld", (long long)index);
            text = mc_str_of(number);
        } else if (kind == TOKEN_PART || kind == TOKEN_ANY) {
            while (unnamed < captures->n && captures->items[unnamed].name.len) unnamed++;
            if (unnamed < captures->n) text = captures->items[unnamed++].text;
        }
        if (at + text.len >= MC_PATH_BYTES) return false;
        memcpy(out + at, text.data, text.len);
        at += text.len;
    }
    out[at] = 0;
    return true;
}
