/* One file for each entry: a head with its key, its length and a hash of the rest, then the bytes. */
#include "runtime/base/cache_entry.h"

#include "runtime/base/hash.h"

#include <inttypes.h>
#include <string.h>

enum { MAX_ENTRY_BYTES = 256 << 20 };

typedef struct entry_head {
    char magic[8];
    uint64_t key[2];
    uint64_t n_bytes;
    uint64_t hash; /* of everything after the head */
} entry_head;

static const char magic[8] = "moecach";

void
mc_cache_key_add(mc_cache_key *key, const void *data, size_t n_bytes)
{
    /* the length goes in too, so that no two lists of parts run together to the same bytes */
    uint64_t length = n_bytes;
    for (uint64_t i = 0; i < 2; i++) {
        uint64_t h = mc_hash64(&length, sizeof length, key->words[i] ^ i * 0x9E3779B97F4A7C15u);
        key->words[i] = mc_hash64(data, n_bytes, h);
    }
}

void
mc_cache_key_print(mc_cache_key key, mc_buf *out)
{
    mc_buf_printf(out, "%016" PRIx64 "%016" PRIx64, key.words[0], key.words[1]);
}

static void
entry_path(const char *directory, mc_cache_key key, mc_buf *out)
{
    mc_buf_printf(out, "%s/", directory);
    mc_cache_key_print(key, out);
}

static bool
verify(mc_str text, mc_cache_key key, mc_str *out_data)
{
    entry_head head;
    if (text.len < sizeof head) return false;
    memcpy(&head, text.data, sizeof head);
    *out_data = mc_str_slice(text, sizeof head, text.len);
    return memcmp(head.magic, magic, sizeof magic) == 0 && memcmp(head.key, key.words, sizeof head.key) == 0 &&
           head.n_bytes == out_data->len && head.hash == mc_hash64(out_data->data, out_data->len, 0);
}

bool
mc_cache_get(const char *directory, mc_cache_key key, mc_buf *out)
{
    mc_buf path = {0}, text = {0};
    mc_str data;
    entry_path(directory, key, &path);
    bool found =
        mc_file_read(path.data, MAX_ENTRY_BYTES, &text, NULL) == MOEC_OK && verify(mc_buf_view(&text), key, &data);
    if (found) mc_buf_str(out, data);
    mc_buf_fini(&path);
    mc_buf_fini(&text);
    return found;
}

void
mc_cache_put(const char *directory, mc_cache_key key, mc_str data)
{
    mc_buf path = {0}, text = {0};
    entry_head head = {.key = {key.words[0], key.words[1]}, .n_bytes = data.len};
    head.hash = mc_hash64(data.data, data.len, 0);
    memcpy(head.magic, magic, sizeof magic);
    mc_buf_write(&text, &head, sizeof head);
    mc_buf_str(&text, data);
    entry_path(directory, key, &path);
    moec_status status = mc_file_write(path.data, text.data, text.len, 0600, NULL);
    (void)status;
    mc_buf_fini(&path);
    mc_buf_fini(&text);
}
