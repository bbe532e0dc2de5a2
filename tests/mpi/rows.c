/* Rows of tokens between ranks that are processes: rows CASES. What each rank must end up with is stated in
 * tests/unit/ep_rig.h. */
#define _GNU_SOURCE
#include "tests/unit/ep_station.h"

int
main(int argc, char **argv)
{
    static moec_error error;
    moec_comm *comm;
    moec_comm_options options = {.backend = "mpi", .deadline_seconds = 30};
    uint64_t n = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    if (moec_comm_open(&options, &comm, &error) != MOEC_OK) {
        printf("%s\n", error.text);
        return 1;
    }
    for (uint32_t r = 0; r < MC_COMM_MAX_RANKS; r++) everyone[r] = r;
    bool fine = n > 0;
    for (uint64_t i = 0; fine && i < n; i++) {
        ep_case c;
        rig_draw_case(&c, i, moec_comm_size(comm));
        ep_facts facts = rig_facts(&c);
        rig_rank rank = {.comm = comm, .me = moec_comm_rank(comm), .shuffle = i};
        fine = run_case(&rank, &c, &facts);
        if (!fine) printf("rank %u, case %llu: %s\n", rank.me, (unsigned long long)i, rank.text);
        free(facts.all);
        rig_free_case(&c);
    }
    if (fine && moec_comm_rank(comm) == 0) printf("%llu cases\n", (unsigned long long)n);
    moec_comm_close(comm);
    return fine ? 0 : 1;
}
