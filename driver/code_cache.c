#define _POSIX_C_SOURCE 200809L
#include "driver/code_cache.h"

#include "runtime/base/hash.h"

#include <inttypes.h>
#include <string.h>

enum { MAX_ENTRY_BYTES = 256 << 20 };

typedef struct entry_head {
    char magic[8];
    uint64_t key[2];
    uint64_t name_bytes, summary_bytes, object_bytes;
    uint64_t hash; /* of everything after the head */
} entry_head;

static const char magic[8] = "moecode";

void
mc_product_fini(mc_product *code)
{
    mc_buf_fini(&code->object);
    mc_buf_fini(&code->name);
    mc_buf_fini(&code->summary);
}

void
mc_code_key_add(mc_code_key *key, const void *data, size_t n_bytes)
{
    /* the length goes in too, so that no two lists of parts run together to the same bytes */
    uint64_t length = n_bytes;
    for (uint64_t i = 0; i < 2; i++) {
        uint64_t h = mc_hash64(&length, sizeof length, key->words[i] ^ i * 0x9E3779B97F4A7C15u);
        key->words[i] = mc_hash64(data, n_bytes, h);
    }
}

static void
entry_path(const char *directory, mc_code_key key, mc_buf *out)
{
    mc_buf_printf(out, "%s/%016" PRIx64 "%016" PRIx64, directory, key.words[0], key.words[1]);
}

static bool
decode(mc_str text, mc_code_key key, mc_product *out)
{
    entry_head head;
    if (text.len < sizeof head) return false;
    memcpy(&head, text.data, sizeof head);
    mc_str body = mc_str_slice(text, sizeof head, text.len);
    if (memcmp(head.magic, magic, sizeof magic) != 0 || memcmp(head.key, key.words, sizeof head.key) != 0) return false;
    if (head.name_bytes > body.len || head.summary_bytes > body.len || head.object_bytes > body.len) return false;
    if (head.name_bytes + head.summary_bytes + head.object_bytes != body.len) return false;
    if (mc_hash64(body.data, body.len, 0) != head.hash) return false;
    mc_buf_write(&out->name, body.data, head.name_bytes);
    mc_buf_write(&out->summary, body.data + head.name_bytes, head.summary_bytes);
    mc_buf_write(&out->object, body.data + head.name_bytes + head.summary_bytes, head.object_bytes);
    return true;
}

bool
mc_code_cache_get(const char *directory, mc_code_key key, mc_product *out)
{
    mc_buf path = {0}, text = {0};
    entry_path(directory, key, &path);
    bool found =
        mc_file_read(path.data, MAX_ENTRY_BYTES, &text, NULL) == MOEC_OK && decode(mc_buf_view(&text), key, out);
    mc_buf_fini(&path);
    mc_buf_fini(&text);
    return found;
}

void
mc_code_cache_put(const char *directory, mc_code_key key, const mc_product *code)
{
    mc_buf path = {0}, body = {0}, text = {0};
    mc_buf_str(&body, mc_buf_view(&code->name));
    mc_buf_str(&body, mc_buf_view(&code->summary));
    mc_buf_str(&body, mc_buf_view(&code->object));
    entry_head head = {.key = {key.words[0], key.words[1]},
                       .name_bytes = code->name.len,
                       .summary_bytes = code->summary.len,
                       .object_bytes = code->object.len,
                       .hash = mc_hash64(body.data, body.len, 0)};
    memcpy(head.magic, magic, sizeof magic);
    mc_buf_write(&text, &head, sizeof head);
    mc_buf_str(&text, mc_buf_view(&body));
    entry_path(directory, key, &path);
    moec_status status = mc_file_write(path.data, text.data, text.len, 0600, NULL);
    (void)status;
    mc_buf_fini(&path);
    mc_buf_fini(&body);
    mc_buf_fini(&text);
}
