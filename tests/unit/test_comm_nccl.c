/* Exchanges over NCCL with threads for ranks: all sizes, subsets, several at once, memory of the device; and ranks and
 * calls that fail. */
#define _GNU_SOURCE
#include "tests/unit/comm_nccl_rig.h"

#include <sys/wait.h>

/* ---- exchanges -------------------------------------------------------------------------------------------------- */

static uint32_t
mix(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t h = a * 0x9E3779B1u ^ b * 0x85EBCA77u ^ c * 0xC2B2AE3Du;
    h ^= h >> 15;
    h *= 0x2C1B3C6Du;
    return h ^ h >> 13;
}

/* Bytes from one rank to another in a round: often none, sometimes few, sometimes many. */
static size_t
bytes_of(uint32_t round, uint32_t from, uint32_t to)
{
    uint32_t h = mix(round, from, to);
    return h % 3 == 0 ? 0 : h % 3 == 1 ? h / 3 % 20 : h / 3 % MAX_BYTES;
}

static unsigned char
byte_of(uint32_t round, uint32_t from, uint32_t to, size_t i)
{
    return (unsigned char)mix(round, from * 64 + to, (uint32_t)i);
}

typedef struct round_memory {
    unsigned char out[MAX_RANKS][MAX_BYTES], in[MAX_RANKS][MAX_BYTES];
    mc_comm_run send[MAX_RANKS], recv[MAX_RANKS];
    uint32_t peers[MAX_RANKS], n_peers, number;
    mc_comm_request *request;
} round_memory;

static moec_status
begin_round(moec_comm *comm, round_memory *m, uint32_t number, uint32_t members, mc_fault *e)
{
    uint32_t me = moec_comm_rank(comm);
    m->number = number;
    m->n_peers = 0;
    for (uint32_t p = 0; p < moec_comm_size(comm); p++)
        if (members >> p & 1) m->peers[m->n_peers++] = p;
    for (uint32_t i = 0; i < m->n_peers; i++) {
        uint32_t p = m->peers[i];
        m->send[i] = (mc_comm_run){m->out[i], bytes_of(number, me, p)};
        m->recv[i] = (mc_comm_run){m->in[i], bytes_of(number, p, me)};
        for (size_t b = 0; b < m->send[i].n_bytes; b++) m->out[i][b] = byte_of(number, me, p, b);
        memset(m->in[i], 0, sizeof m->in[i]);
    }
    mc_exchange x = {"rows", m->n_peers, m->peers, m->send, m->recv};
    return mc_comm_begin(comm, &x, &m->request, e);
}

static moec_status
end_round(moec_comm *comm, round_memory *m, mc_fault *e)
{
    uint32_t me = moec_comm_rank(comm);
    moec_status s = mc_comm_wait(comm, m->request, e);
    for (uint32_t i = 0; i < m->n_peers && s == MOEC_OK; i++)
        for (size_t b = 0; b < m->recv[i].n_bytes; b++)
            if (m->in[i][b] != byte_of(m->number, m->peers[i], me, b))
                return mc_fail(e, MOEC_ERR_INTERNAL, "round %u: byte %zu from rank %u is wrong", m->number, b,
                               m->peers[i]);
    return s;
}

enum { ROUNDS = 24, AT_ONCE = 3 };

/* Rounds of all ranks and of subsets, up to three under way at once, ended in another order than begun. */
static moec_status
play_rounds(moec_comm *comm, job *j)
{
    round_memory *m = calloc(AT_ONCE, sizeof *m);
    mc_fault e = {{0}};
    moec_status s = m ? MOEC_OK : MOEC_ERR_MEMORY;
    for (uint32_t round = 0; round < ROUNDS && s == MOEC_OK; round += AT_ONCE) {
        bool begun[AT_ONCE] = {0};
        for (uint32_t i = 0; i < AT_ONCE && s == MOEC_OK; i++) {
            uint32_t members = (round + i) % 4 == 3 ? mix(round, i, 9) : UINT32_MAX;
            begun[i] = members >> j->rank & 1;
            if (begun[i]) s = begin_round(comm, &m[i], round + i, members, &e);
        }
        for (uint32_t i = AT_ONCE; i-- > 0 && s == MOEC_OK;)
            if (begun[i]) s = end_round(comm, &m[i], &e);
    }
    free(m);
    return s == MOEC_OK ? s : fault(j, s, e.text);
}

static moec_status
play_records(moec_comm *comm, job *j)
{
    static const char text[] = "what rank 1 knows";
    char heard[sizeof text] = {0};
    uint32_t mine[2] = {j->rank, 7 * j->rank}, theirs[MAX_RANKS][2], to[MAX_RANKS][2], from[MAX_RANKS][2];
    uint32_t everyone[MAX_RANKS];
    moec_error error = {0};
    mc_fault e = {{0}};
    if (j->rank == 1) memcpy(heard, text, sizeof text);
    moec_status s = moec_comm_broadcast(comm, 1, heard, sizeof heard, &error);
    if (s != MOEC_OK || strcmp(heard, text) != 0) return fault(j, s ? s : MOEC_ERR_INTERNAL, error.text);
    s = moec_comm_gather(comm, mine, sizeof mine, theirs, &error);
    if (s != MOEC_OK) return fault(j, s, error.text);
    for (uint32_t r = 0; r < j->size; r++) {
        if (theirs[r][0] != r || theirs[r][1] != 7 * r) return fault(j, MOEC_ERR_INTERNAL, "gather");
        everyone[r] = r;
        to[r][0] = 100 * j->rank + r;
        to[r][1] = r;
    }
    mc_comm_identify(comm, 42, 1);
    mc_comm_at_step(comm, 3);
    s = mc_comm_records(comm, "counts", j->size, everyone, to, from, sizeof *to, &e);
    if (s != MOEC_OK) return fault(j, s, e.text);
    for (uint32_t r = 0; r < j->size; r++)
        if (from[r][0] != 100 * r + j->rank || from[r][1] != j->rank) return fault(j, MOEC_ERR_INTERNAL, "records");
    return MOEC_OK;
}

static const struct {
    uint32_t n;
    const char *slow, *lazy, *delay;
} ways[] = {{1, "2", "0", "0"}, {2, "2", "0", "0"}, {2, "0", "0", "0"}, {3, "1", "0", "2"},
            {4, "2", "1", "0"}, {4, "5", "0", "1"}, {8, "2", "0", "0"}, {8, "0", "1", "0"}};

START_TEST(exchanges)
{
    job jobs[MAX_RANKS] = {0};
    uint32_t n = ways[_i].n;
    env("MOEC_FAKE_NCCL_SLOW", ways[_i].slow);
    env("MOEC_FAKE_LAZY", ways[_i].lazy);
    env("MOEC_FAKE_NCCL_DELAY", ways[_i].delay);
    run(jobs, n, 30, play_rounds);
    all_well(jobs, n);
    for (uint32_t r = 0; r < n; r++) {
        ck_assert_uint_eq(jobs[r].per_node, n);
        ck_assert_str_eq(jobs[r].backend, "nccl (2.28.9)");
    }
    /* Each pair's messages that have bytes, and no others. */
    uint64_t messages = 0, bytes = 0;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t members = round % 4 == 3 ? mix(round / AT_ONCE * AT_ONCE, round % AT_ONCE, 9) : UINT32_MAX;
        for (uint32_t a = 0; a < n; a++)
            for (uint32_t b = 0; b < n; b++) {
                if (a == b || !(members >> a & 1) || !(members >> b & 1)) continue;
                messages += bytes_of(round, a, b) != 0;
                bytes += bytes_of(round, a, b);
            }
    }
    ck_assert_uint_eq(nccl_now().messages, messages);
    ck_assert_uint_eq(nccl_now().bytes, bytes);
}
END_TEST

START_TEST(records)
{
    job jobs[MAX_RANKS] = {0};
    uint32_t n = (uint32_t)_i;
    run(jobs, n, 30, play_records);
    all_well(jobs, n);
}
END_TEST

/* Growing exchanges while a small one is under way, whose copies must stay where they are. */
static moec_status
play_growth(moec_comm *comm, job *j)
{
    enum { MOST = 1 << 20 };
    unsigned char *out = malloc(MOST), *in = malloc(MOST);
    uint32_t peer = !j->rank, small_out = 5 + j->rank, small_in = 0;
    mc_comm_run s1 = {&small_out, sizeof small_out}, r1 = {&small_in, sizeof small_in};
    mc_exchange one = {"small", 1, &peer, &s1, &r1};
    mc_comm_request *request;
    mc_fault e = {{0}};
    moec_status s = out && in ? MOEC_OK : MOEC_ERR_MEMORY;
    for (size_t n = 1000; n <= MOST && s == MOEC_OK; n *= 4) {
        mc_comm_run s2 = {out, n + j->rank}, r2 = {in, n + peer};
        mc_exchange two = {"large", 1, &peer, &s2, &r2};
        memset(out, (int)(n / 1000 + j->rank), n + 1);
        s = mc_comm_begin(comm, &one, &request, &e);
        if (s == MOEC_OK) s = mc_comm_exchange(comm, &two, &e);
        if (s == MOEC_OK) s = mc_comm_wait(comm, request, &e);
        if (s == MOEC_OK &&
            (in[0] != (unsigned char)(n / 1000 + peer) || in[n + peer - 1] != in[0] || small_in != 5 + peer))
            s = mc_fail(&e, MOEC_ERR_INTERNAL, "wrong bytes at %zu", n);
    }
    free(out);
    free(in);
    return s == MOEC_OK ? s : fault(j, s, e.text);
}

START_TEST(growth)
{
    job jobs[2] = {0};
    run(jobs, 2, 30, play_growth);
    all_well(jobs, 2);
}
END_TEST

/* Two exchanges at once, so that both have their room; then one that never ends, and one that needs more room: its
 * begin must not wait. */
static moec_status
play_growth_alone(moec_comm *comm, job *j)
{
    static unsigned char out[2][1 << 20], in[2][2][1 << 20];
    uint32_t peer = !j->rank;
    mc_comm_request *requests[2];
    mc_fault e = {{0}};
    moec_status s = MOEC_OK;
    for (int i = 0; i < 4 && s == MOEC_OK; i++) {
        size_t n = i == 3 ? sizeof out[0] : 1000;
        mc_comm_run send = {out[j->rank], n}, recv = {in[j->rank][i % 2], n};
        mc_exchange x = {"rows", 1, &peer, &send, &recv};
        if (i == 2 && j->rank == 1) return MOEC_OK;
        double begin = mc_seconds();
        s = mc_comm_begin(comm, &x, &requests[i % 2], &e);
        if (s == MOEC_OK && mc_seconds() - begin > 5) s = mc_fail(&e, MOEC_ERR_INTERNAL, "begin waited");
        for (int r = 0; i == 1 && r < 2 && s == MOEC_OK; r++) s = mc_comm_wait(comm, requests[r], &e);
    }
    return s == MOEC_OK ? s : fault(j, s, e.text);
}

START_TEST(growth_beside_a_silent_rank)
{
    job jobs[2] = {{0}, {.device = 1}};
    env("MOEC_FAKE_DEVICES", "2");
    run(jobs, 2, 1, play_growth_alone);
    all_well(jobs, 2);
}
END_TEST

/* Sends from the device to the processor and the other way round, its own run too. */
static moec_status
play_device(moec_comm *comm, job *j)
{
    enum { N = 300 };
    const mc_cuda *cuda = j->gpu->cuda;
    CUdeviceptr at = 0;
    unsigned char host[N], in[4][N];
    mc_comm_run send[4], recv[4];
    uint32_t peers[4] = {0, 1, 2, 3};
    mc_fault e = {{0}};
    moec_status s = mc_gpu_enter(j->gpu, &e);
    if (s == MOEC_OK) s = mc_gpu_alloc(j->gpu, 5 * N, "a test", &at, &e);
    memset(host, (int)j->rank + 1, sizeof host);
    if (s == MOEC_OK) s = MC_CUDA(cuda, &e, cuMemcpyHtoDAsync, at, host, N, NULL);
    for (uint32_t p = 0; p < 4; p++) { /* even ranks receive on the device */
        send[p] = (mc_comm_run){mc_gpu_pointer(at), N};
        recv[p] = (mc_comm_run){j->rank % 2 ? in[p] : mc_gpu_pointer(at + (p + 1) * (CUdeviceptr)N), N};
    }
    mc_exchange x = {"rows", 4, peers, send, recv};
    if (s == MOEC_OK) s = mc_comm_exchange(comm, &x, &e);
    if (s == MOEC_OK && j->rank % 2 == 0) {
        s = MC_CUDA(cuda, &e, cuMemcpyDtoHAsync, in, at + N, 4 * N, NULL);
        if (s == MOEC_OK) s = MC_CUDA(cuda, &e, cuStreamSynchronize, NULL);
    }
    for (uint32_t p = 0; p < 4 && s == MOEC_OK; p++)
        if (in[p][0] != p + 1 || in[p][N - 1] != p + 1)
            s = mc_fail(&e, MOEC_ERR_INTERNAL, "wrong bytes from rank %u: %d", p, in[p][0]);
    cuda->cuMemFree(at);
    mc_gpu_leave(j->gpu);
    return s == MOEC_OK ? s : fault(j, s, e.text);
}

START_TEST(device_memory)
{
    job jobs[4] = {0};
    run(jobs, 4, 30, play_device);
    all_well(jobs, 4);
}
END_TEST

/* ---- ranks that fail -------------------------------------------------------------------------------------------- */

/* A round in which everybody sends everybody 100 bytes. */
static moec_status
play_hundred(moec_comm *comm, job *j)
{
    unsigned char out[100], in[MAX_RANKS][100];
    mc_comm_run send[MAX_RANKS], recv[MAX_RANKS];
    uint32_t peers[MAX_RANKS];
    mc_fault e = {{0}};
    memset(out, (int)j->rank, sizeof out);
    for (uint32_t p = 0; p < j->size; p++) {
        peers[p] = p;
        send[p] = (mc_comm_run){out, sizeof out};
        recv[p] = (mc_comm_run){in[p], sizeof in[p]};
    }
    mc_exchange x = {"rows", j->size, peers, send, recv};
    mc_comm_at_step(comm, 12);
    moec_status s = mc_comm_exchange(comm, &x, &e);
    if (s != MOEC_OK) { /* and again the same */
        mc_fault again = {{0}};
        if (mc_comm_exchange(comm, &x, &again) != s || strcmp(again.text, e.text) != 0)
            return fault(j, MOEC_ERR_INTERNAL, "the second call says something else");
    }
    return s == MOEC_OK ? s : fault(j, s, e.text);
}

/* The message names the rank that is silent, not just any. */
START_TEST(a_silent_rank)
{
    job jobs[4] = {0};
    uint32_t silent = (uint32_t)_i;
    char part[80];
    jobs[silent].play = play_silent;
    run(jobs, 4, 0.4, play_hundred);
    snprintf(part, sizeof part, "for 100 bytes from rank %u in step 12", silent);
    for (uint32_t r = 0; r < 4; r++) {
        if (r == silent) continue;
        says(&jobs[r], MOEC_ERR_COMM, part);
        ck_assert_double_lt(jobs[r].seconds, 1.4);
    }
    nothing_left();
}
END_TEST

/* All that is received has come; rank 2 takes nothing. */
static moec_status
play_one_way(moec_comm *comm, job *j)
{
    unsigned char out[100] = {0}, in[3][100];
    uint32_t peers[3] = {0, 1, 2};
    mc_comm_run send[3] = {0}, recv[3] = {0};
    mc_fault e = {{0}};
    for (uint32_t p = 0; p < 3; p++) {
        if (j->rank != 2 && p != j->rank) send[p] = (mc_comm_run){out, sizeof out};
        if (p != 2 && p != j->rank) recv[p] = (mc_comm_run){in[p], sizeof in[p]};
    }
    mc_exchange x = {"rows", 3, peers, send, recv};
    moec_status s = mc_comm_exchange(comm, &x, &e);
    return s == MOEC_OK ? s : fault(j, s, e.text);
}

START_TEST(a_rank_that_takes_nothing)
{
    job jobs[3] = {{0}, {0}, {.play = play_silent}};
    run(jobs, 3, 0.4, play_one_way);
    says(&jobs[0], MOEC_ERR_COMM, "for rank 2 to take its bytes");
    says(&jobs[1], MOEC_ERR_COMM, "for rank 2 to take its bytes");
    nothing_left();
}
END_TEST

START_TEST(a_rank_that_hangs_on_the_device)
{
    job jobs[3] = {0};
    env("MOEC_FAKE_NCCL_HANG", "1:1");
    run(jobs, 3, 0.4, play_hundred);
    says(&jobs[0], MOEC_ERR_COMM, "bytes from rank 1 in step 12");
    says(&jobs[2], MOEC_ERR_COMM, "bytes from rank 1 in step 12");
    ck_assert_int_eq(jobs[1].status, MOEC_ERR_COMM);
    nothing_left();
}
END_TEST

START_TEST(an_asynchronous_error)
{
    job jobs[3] = {0};
    env("MOEC_FAKE_NCCL_ASYNC", "1:1:2");
    env("MOEC_FAKE_NCCL_NETWORK", "1");
    run(jobs, 3, 20, play_hundred);
    says(&jobs[1], MOEC_ERR_COMM, "unhandled system error (2): told to fail in group 1");
    for (uint32_t r = 0; r < 3; r++) ck_assert_double_lt(jobs[r].seconds, 5);
    ck_assert(jobs[0].status == MOEC_ERR_COMM && strstr(jobs[0].text, "closed the connection"));
    ck_assert(jobs[2].status == MOEC_ERR_COMM && strstr(jobs[2].text, "closed the connection"));
    nothing_left();
}
END_TEST

/* The real one hangs; the layers above check sizes before. */
static moec_status
play_mismatch(moec_comm *comm, job *j)
{
    unsigned char out[2000] = {0}, in[2000];
    uint32_t peer = !j->rank;
    mc_comm_run send = {out, j->rank ? 1504 : 600}, recv = {in, j->rank ? 600 : 1536};
    mc_exchange x = {"rows", 1, &peer, &send, &recv};
    mc_fault e = {{0}};
    moec_status s = mc_comm_exchange(comm, &x, &e);
    return s == MOEC_OK ? s : fault(j, s, e.text);
}

START_TEST(sizes_that_differ)
{
    job jobs[2] = {0};
    run(jobs, 2, 20, play_mismatch);
    says(&jobs[0], MOEC_ERR_COMM, "rank 0: receives 1536 bytes from rank 1, but that sends 1504");
    ck_assert_int_eq(jobs[1].status, MOEC_ERR_COMM);
    ck_assert_uint_eq(nccl_now().mismatches, 1);
    nothing_left();
}
END_TEST

static moec_status
play_own_mismatch(moec_comm *comm, job *j)
{
    unsigned char out[8] = {0}, in[8];
    uint32_t me = j->rank;
    mc_comm_run send = {out, 8}, recv = {in, 4};
    mc_exchange x = {"rows", 1, &me, &send, &recv};
    mc_fault e = {{0}};
    moec_status s = mc_comm_exchange(comm, &x, &e);
    return s == MOEC_OK ? s : fault(j, s, e.text);
}

START_TEST(a_rank_at_odds_with_itself)
{
    job jobs[1] = {0};
    run(jobs, 1, 20, play_own_mismatch);
    says(&jobs[0], MOEC_ERR_MISMATCH, "sends itself 8 bytes and expects 4");
    nothing_left();
}
END_TEST

/* Whatever NCCL call fails at whatever time: an error on that rank, an end on all, and nothing left. */
static const char *const functions[] = {
#define MC_NCCL_FN(type, name, parameters) #name,
#include "runtime/comm/nccl_api.def"
#undef MC_NCCL_FN
};
enum { N_FUNCTIONS = sizeof functions / sizeof *functions };

static int
failing_life(void)
{
    job jobs[2] = {{.joining = 0.1}, {.joining = 0.1}};
    run(jobs, 2, 0.1, play_hundred);
    nothing_left();
    int failed = 0;
    for (int r = 0; r < 2; r++) {
        ck_assert(jobs[r].status == MOEC_OK || jobs[r].text[0]);
        failed += jobs[r].status != MOEC_OK;
    }
    return failed ? 1 : 0;
}

START_TEST(every_call_may_fail)
{
    const char *name = functions[_i];
    char plan[80];
    int failures = 0;
    for (int call = 1; call <= 5; call++) {
        snprintf(plan, sizeof plan, "%s:%d:3", name, call);
        pid_t child = fork();
        if (child == 0) {
            env("MOEC_FAKE_NCCL_FAIL", plan);
            _exit(failing_life());
        }
        int status = 0;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) <= 1, "%s ends the process", plan);
        failures += WEXITSTATUS(status);
    }
    if (strstr(name, "Send") || strstr(name, "Recv") || strstr(name, "Group") || strstr(name, "Init"))
        ck_assert_int_ge(failures, 2);
}
END_TEST

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static void
add_tests(TCase *t)
{
    tcase_add_loop_test(t, exchanges, 0, (int)(sizeof ways / sizeof *ways));
    tcase_add_loop_test(t, records, 2, MAX_RANKS + 1);
    tcase_add_test(t, growth);
    tcase_add_test(t, growth_beside_a_silent_rank);
    tcase_add_test(t, device_memory);
    tcase_add_loop_test(t, a_silent_rank, 0, 4);
    tcase_add_test(t, a_rank_that_takes_nothing);
    tcase_add_test(t, a_rank_that_hangs_on_the_device);
    tcase_add_test(t, an_asynchronous_error);
    tcase_add_test(t, sizes_that_differ);
    tcase_add_test(t, a_rank_at_odds_with_itself);
    tcase_add_loop_test(t, every_call_may_fail, 0, N_FUNCTIONS);
}

int
main(void)
{
    return rig_main("comm_nccl", add_tests);
}
