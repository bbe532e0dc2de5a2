/* How the ranks of an NCCL group find each other: through files, and without being fooled by what earlier runs left.
 *
 *   rank r > 0   writes path.r: its size, and a random number. Waits until path says that number. Removes path.r.
 *   rank 0       waits for all path.r, writes path: the id, and everybody's number. A path.r that changes (it was an
 *                earlier run's) is answered again. Once all path.r are gone, removes path.
 *
 * Every file appears whole, by rename. A run that was killed leaves files; the next run's ranks write over theirs. */
#define _GNU_SOURCE
#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/comm/comm_nccl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { NUMBER_BYTES = 16, PATH_BYTES = 4096 };

typedef struct guest {
    char magic[8];
    uint32_t rank, size;
    uint8_t number[NUMBER_BYTES];
    uint64_t host; /* equal: the same machine */
} guest;

typedef struct invitation {
    char magic[8];
    uint32_t size, zero;
    ncclUniqueId id;
    uint64_t hash; /* of what stands before it and of the guests behind */
} invitation;

static const char guest_magic[8] = "moec-in", invitation_magic[8] = "moec-id";

void
mc_nccl_nap(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&t, NULL);
}

static uint64_t
this_host(void)
{
    char name[256] = "";
    gethostname(name, sizeof name - 1);
    return mc_hash64(name, strlen(name), 0);
}

static uint64_t
hash_of(const invitation *i, const guest *guests, uint32_t n)
{
    return mc_hash64(guests, n * sizeof *guests, mc_hash64(i, offsetof(invitation, hash), 0));
}

static moec_status
guest_path(const mc_nccl_meeting *m, uint32_t rank, char *out, mc_fault *error)
{
    if (snprintf(out, PATH_BYTES, "%s.%u", m->path, rank) < PATH_BYTES) return MOEC_OK;
    return mc_fail(error, MOEC_ERR_ARGUMENT, "the rendezvous file's name is longer than %d bytes", PATH_BYTES - 16);
}

/* Exactly n_bytes of a file; false when there are not as many, or none. Errors: IO (not: that it is not there). */
static moec_status
read_whole(const char *path, void *out, size_t n_bytes, bool *out_there, mc_fault *error)
{
    mc_buf buf = {0};
    mc_fault why;
    *out_there = false;
    moec_status s = mc_file_read(path, n_bytes, &buf, &why);
    if (s == MOEC_OK && buf.len == n_bytes) {
        memcpy(out, buf.data, n_bytes);
        *out_there = true;
    }
    mc_buf_fini(&buf);
    if (s == MOEC_OK || s == MOEC_ERR_NOT_FOUND || s == MOEC_ERR_RANGE) return MOEC_OK;
    return mc_fail(error, s, "%s", why.text);
}

/* Neighbours on one host, when all hosts have equally many of them; else 1. */
static uint32_t
count_per_node(const guest *guests, uint32_t n)
{
    uint32_t per = 1;
    while (per < n && guests[per].host == guests[0].host) per++;
    if (n % per) return 1;
    for (uint32_t i = 0; i < n; i++)
        if (guests[i].host != guests[i / per * per].host) return 1;
    for (uint32_t i = per; i < n; i += per)
        if (guests[i].host == guests[i - 1].host) return 1;
    return per;
}

/* ---- rank 0 ----------------------------------------------------------------------------------------------------- */

typedef struct party {
    guest *guests;
    bool *there, *gone; /* gone: has read the answer */
    invitation head;
    bool sent; /* to the guests as they are */
} party;

/* Looks at one rank's file. */
static moec_status
look(const mc_nccl_meeting *m, party *p, uint32_t rank, mc_fault *error)
{
    char path[PATH_BYTES];
    guest g;
    bool there;
    moec_status s = guest_path(m, rank, path, error);
    if (s == MOEC_OK) s = read_whole(path, &g, sizeof g, &there, error);
    if (s != MOEC_OK) return s;
    if (!there) {
        p->gone[rank] = p->sent && p->there[rank] && !mc_file_exists(path);
        return MOEC_OK;
    }
    if (memcmp(g.magic, guest_magic, sizeof g.magic) != 0 || g.rank != rank || g.size != m->size) return MOEC_OK;
    p->gone[rank] = false;
    if (p->there[rank] && memcmp(&p->guests[rank], &g, sizeof g) == 0) return MOEC_OK;
    p->guests[rank] = g;
    p->there[rank] = true;
    p->sent = false;
    return MOEC_OK;
}

static moec_status
send_invitation(const mc_nccl_meeting *m, party *p, mc_fault *error)
{
    mc_buf buf = {0};
    p->head.hash = hash_of(&p->head, p->guests, m->size);
    mc_buf_write(&buf, &p->head, sizeof p->head);
    mc_buf_write(&buf, p->guests, m->size * sizeof *p->guests);
    moec_status s = mc_file_write(m->path, buf.data, buf.len, 0600, error);
    mc_buf_fini(&buf);
    p->sent = s == MOEC_OK;
    return s;
}

static moec_status
nobody_came(const mc_nccl_meeting *m, const party *p, mc_fault *error)
{
    uint32_t first = 0, n = 0;
    for (uint32_t r = m->size; r-- > 1;) {
        if (p->sent ? p->gone[r] : p->there[r]) continue;
        first = r;
        n++;
    }
    return mc_fail(error, MOEC_ERR_COMM,
                   "rank %u did not join the group in time (%u of %u ranks are missing; they meet at %.300s, and must "
                   "be started with the same size %u)",
                   first, n, m->size, m->path, m->size);
}

static bool
all(const bool *flags, uint32_t size)
{
    for (uint32_t r = 1; r < size; r++)
        if (!flags[r]) return false;
    return true;
}

static moec_status
receive_guests(mc_nccl_meeting *m, party *p, mc_fault *error)
{
    moec_status s = MOEC_OK;
    for (double nap = 0.001;; nap = nap < 0.02 ? 2 * nap : nap) {
        for (uint32_t r = 1; r < m->size && s == MOEC_OK; r++) s = look(m, p, r, error);
        if (s == MOEC_OK && !p->sent && all(p->there, m->size)) s = send_invitation(m, p, error);
        if (s != MOEC_OK || (p->sent && all(p->gone, m->size))) return s;
        if (mc_seconds() >= m->until) return nobody_came(m, p, error);
        mc_nccl_nap(nap);
    }
}

static moec_status
host(mc_nccl_meeting *m, mc_fault *error)
{
    party p = {.guests = calloc(m->size, sizeof *p.guests), .there = calloc(2 * (size_t)m->size, sizeof *p.there)};
    moec_status s = MOEC_OK;
    if (!p.guests || !p.there) s = mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    if (s == MOEC_OK) {
        p.gone = p.there + m->size;
        p.head = (invitation){.size = m->size, .id = m->id};
        memcpy(p.head.magic, invitation_magic, sizeof p.head.magic);
        p.guests[0].host = this_host();
        s = receive_guests(m, &p, error);
        m->ranks_per_node = count_per_node(p.guests, m->size);
        unlink(m->path);
    }
    free(p.guests);
    free(p.there);
    return s;
}

/* ---- the others ------------------------------------------------------------------------------------------------- */

static moec_status
wait_for_invitation(mc_nccl_meeting *m, const guest *me, void *memory, size_t n_bytes, mc_fault *error)
{
    for (double nap = 0.001;; nap = nap < 0.02 ? 2 * nap : nap) {
        bool there;
        moec_status s = read_whole(m->path, memory, n_bytes, &there, error);
        if (s != MOEC_OK) return s;
        if (there) {
            invitation head;
            const guest *guests = (const guest *)(const void *)((const unsigned char *)memory + sizeof head);
            memcpy(&head, memory, sizeof head);
            if (memcmp(head.magic, invitation_magic, sizeof head.magic) == 0 && head.size == m->size &&
                head.hash == hash_of(&head, guests, m->size) && memcmp(&guests[m->rank], me, sizeof *me) == 0) {
                m->id = head.id;
                m->ranks_per_node = count_per_node(guests, m->size);
                return MOEC_OK;
            }
        }
        if (mc_seconds() >= m->until)
            return mc_fail(error, MOEC_ERR_COMM,
                           "rank 0 did not open the group in time (rank %u waited for %.300s; all ranks must be "
                           "started, with the same size %u)",
                           m->rank, m->path, m->size);
        mc_nccl_nap(nap);
    }
}

static moec_status
join(mc_nccl_meeting *m, mc_fault *error)
{
    char path[PATH_BYTES];
    guest me = {.rank = m->rank, .size = m->size, .host = this_host()};
    memcpy(me.magic, guest_magic, sizeof me.magic);
    if (getrandom(me.number, sizeof me.number, 0) != (ssize_t)sizeof me.number)
        return mc_fail(error, MOEC_ERR_IO, "the operating system gives no random numbers");
    size_t n_bytes = sizeof(invitation) + m->size * sizeof(guest);
    void *memory = malloc(n_bytes);
    if (!memory) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    moec_status s = guest_path(m, m->rank, path, error);
    if (s == MOEC_OK) s = mc_file_write(path, &me, sizeof me, 0600, error);
    if (s == MOEC_OK) {
        s = wait_for_invitation(m, &me, memory, n_bytes, error);
        unlink(path);
    }
    free(memory);
    return s;
}

moec_status
mc_nccl_meet(mc_nccl_meeting *m, mc_fault *error)
{
    m->ranks_per_node = 1;
    if (m->size == 1) return MOEC_OK;
    return m->rank == 0 ? host(m, error) : join(m, error);
}
