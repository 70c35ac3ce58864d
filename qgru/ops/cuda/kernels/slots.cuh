// Where the elements of a time step are stored, and which lane owns them.
#pragma once
#include "base.cuh"

// A row group's ROWS rows, 4, 8, 16 or 24: a lane of quad position q owns ROWS / 4 of them, in every tile two units.
__device__ __forceinline__ int row_of(int q, int j) {
    return ROWS == 4 ? q : ROWS == 8 ? 2 * q + j : (j >> 1) * 8 + 2 * q + (j & 1);
}
// Stored elements are laid out (time, groups, tiles, column tiles of 8 rows, 32 lanes, 2 rows, 2 units): what a warp
// reads or writes at once lies in a row. Four rows make half a column tile.
#define SLOT_TILES ((ROWS + 7) / 8)
#define SLOT_ELEMENTS (ROWS == 4 ? 2 : 4)
__device__ __forceinline__ long long slot_of(int t, int groups, int group, int tiles, int tile, int column_tile) {
    return ((((long long)t * groups + group) * tiles + tile) * SLOT_TILES + column_tile) * 32 + (threadIdx.x & 31);
}
