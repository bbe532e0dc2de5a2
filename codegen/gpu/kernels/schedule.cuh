// schedule: which tile of which group a block works on. A group is an expert with its own number of rows, or a head; a
// product of many groups is one list of tiles, without padding: the last tile of a group is just shorter. Blocks walk
// the list with the stride of the grid, so any grid is right. Nothing here needs more than `base.cuh`.
#pragma once
#include "base.cuh"

enum { SCHEDULE_GROUPS = 1024, SCHEDULE_BAND = 16 };

struct mc_tile {
    i32 group, row, column; /* row and column count tiles within the group */
};

/* How many tiles of `size` cover n. */
MC_FN i32
tiles_of(i64 n, i32 size)
{
    return i32((n + size - 1) / size);
}

/* first[g] is the number of the first tile of group g, first[groups] the number of tiles: the group of a tile. Groups
 * without tiles are passed over. */
MC_FN i32
schedule_group(const i32 *first, i32 groups, i32 tile)
{
    i32 low = 0, high = groups; /* first[low] <= tile < first[high] */
    while (high - low > 1) {
        i32 middle = (low + high) >> 1;
        if (first[middle] <= tile)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Tile number `local` of row_tiles x columns. Bands of rows, and the row fastest within a band: blocks that run at the
 * same time share both operands in L2. */
MC_FN mc_tile
schedule_local(i32 group, i32 row_tiles, i32 columns, i32 local)
{
    i32 band = local / (SCHEDULE_BAND * columns), left = row_tiles - band * SCHEDULE_BAND;
    i32 height = left < SCHEDULE_BAND ? left : SCHEDULE_BAND;
    i32 rest = local - band * SCHEDULE_BAND * columns;
    return mc_tile{group, band * SCHEDULE_BAND + rest % height, rest / height};
}

/* Tile number `tile` of groups that have first[g + 1] - first[g] tiles each, `columns` to a row of tiles. */
MC_FN mc_tile
schedule_tile(const i32 *first, i32 groups, i32 columns, i32 tile)
{
    i32 g = schedule_group(first, groups, tile);
    return schedule_local(g, (first[g + 1] - first[g]) / columns, columns, tile - first[g]);
}

/* Fills first[0 .. groups] for groups of offsets[g + 1] - offsets[g] rows, tiles of `height` rows. All threads of the
 * block call it; warp 0 does it, 32 groups at a time. Returns the number of tiles. */
MC_FN i32
schedule_build(i32 *first, const i32 *offsets, i32 groups, i32 height, i32 columns)
{
    if (threadIdx.x < 32) {
        i32 lane = i32(threadIdx.x), carry = 0;
        for (i32 g = lane; g - lane < groups; g += 32) {
            i32 n = g < groups ? tiles_of(offsets[g + 1] - offsets[g], height) * columns : 0, sum = n;
            for (i32 d = 1; d < 32; d <<= 1) {
                i32 other = shfl_up(sum, d);
                if (lane >= d) sum += other;
            }
            if (g < groups) first[g] = carry + sum - n;
            carry += shfl(sum, 31);
        }
        if (lane == 0) first[groups] = carry;
    }
    block_sync();
    return first[groups];
}
