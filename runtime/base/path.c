/* path: see path.h. Matching remembers the last star only: taking more with an earlier one never helps. */
#include "runtime/base/path.h"

mc_str
mc_path_join(mc_arena *arena, mc_str scope, mc_str path)
{
    if (!scope.len) return path;
    if (!path.len) return scope;
    return mc_strf(arena, "%.*s.%.*s", MC_FMT(scope), MC_FMT(path));
}

static bool
part_matches(mc_str glob, mc_str part)
{
    size_t g = 0, p = 0, star = SIZE_MAX, resume = 0;
    while (p < part.len) {
        if (g < glob.len && glob.data[g] == '*') {
            star = g++;
            resume = p;
        } else if (g < glob.len && glob.data[g] == part.data[p]) {
            g++;
            p++;
        } else if (star != SIZE_MAX) {
            g = star + 1;
            p = ++resume;
        } else {
            return false;
        }
    }
    while (g < glob.len && glob.data[g] == '*') g++;
    return g == glob.len;
}

/* The part that begins at *at; moves *at to the next one, or beyond the end. */
static mc_str
take_part(mc_str path, size_t *at)
{
    size_t begin = *at, end = begin;
    while (end < path.len && path.data[end] != '.') end++;
    *at = end < path.len ? end + 1 : path.len + 1;
    return mc_str_slice(path, begin, end);
}

bool
mc_path_matches(mc_str glob, mc_str path)
{
    size_t g = 0, p = 0, after_stars = SIZE_MAX, resume = 0;
    while (p <= path.len) {
        size_t next_g = g, next_p = p;
        mc_str want = g <= glob.len ? take_part(glob, &next_g) : (mc_str){0};
        mc_str part = take_part(path, &next_p);
        if (g <= glob.len && mc_str_is(want, "**")) {
            g = after_stars = next_g;
            resume = p;
        } else if (g <= glob.len && part_matches(want, part)) {
            g = next_g;
            p = next_p;
        } else if (after_stars != SIZE_MAX) {
            take_part(path, &resume);
            g = after_stars;
            p = resume;
        } else {
            return false;
        }
    }
    while (g <= glob.len)
        if (!mc_str_is(take_part(glob, &g), "**")) return false;
    return true;
}

bool
mc_path_next_glob(mc_str globs, size_t *at, mc_str *out_glob)
{
    size_t begin = *at, end = begin;
    if (begin >= globs.len) return false;
    while (end < globs.len && globs.data[end] != ',') end++;
    *out_glob = mc_str_slice(globs, begin, end);
    *at = end + 1;
    return true;
}

bool
mc_path_matches_any(mc_str globs, mc_str path)
{
    mc_str glob;
    for (size_t at = 0; mc_path_next_glob(globs, &at, &glob);)
        if (mc_path_matches(glob, path)) return true;
    return false;
}
