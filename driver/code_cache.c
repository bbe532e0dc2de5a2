/* An entry is the lengths of name and summary, then name, summary and object. */
#include "driver/code_cache.h"

#include <string.h>

typedef struct entry_head {
    uint64_t name_bytes, summary_bytes;
} entry_head;

void
mc_product_fini(mc_product *code)
{
    mc_buf_fini(&code->object);
    mc_buf_fini(&code->image);
    mc_buf_fini(&code->name);
    mc_buf_fini(&code->summary);
}

static bool
decode(mc_str text, mc_product *out)
{
    entry_head head;
    if (text.len < sizeof head) return false;
    memcpy(&head, text.data, sizeof head);
    mc_str body = mc_str_slice(text, sizeof head, text.len);
    if (head.name_bytes > body.len || head.summary_bytes > body.len - head.name_bytes) return false;
    mc_buf_str(&out->name, mc_str_slice(body, 0, head.name_bytes));
    mc_buf_str(&out->summary, mc_str_slice(body, head.name_bytes, head.name_bytes + head.summary_bytes));
    mc_buf_str(&out->object, mc_str_slice(body, head.name_bytes + head.summary_bytes, body.len));
    return true;
}

bool
mc_code_cache_get(const char *directory, mc_cache_key key, mc_product *out)
{
    mc_buf text = {0};
    bool found = mc_cache_get(directory, key, &text) && decode(mc_buf_view(&text), out);
    mc_buf_fini(&text);
    return found;
}

void
mc_code_cache_put(const char *directory, mc_cache_key key, const mc_product *code)
{
    mc_buf text = {0};
    entry_head head = {code->name.len, code->summary.len};
    mc_buf_write(&text, &head, sizeof head);
    mc_buf_str(&text, mc_buf_view(&code->name));
    mc_buf_str(&text, mc_buf_view(&code->summary));
    mc_buf_str(&text, mc_buf_view(&code->object));
    mc_cache_put(directory, key, mc_buf_view(&text));
    mc_buf_fini(&text);
}
