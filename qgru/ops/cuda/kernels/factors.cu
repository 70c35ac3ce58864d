// What the reverse walk multiplies with, for every element of a chunk at once: (direct, r, z, g).
//
// With d the gradient of a new state, direct * d goes to the state before, and r * d, z * d, g * d are the gradients of
// R h, times the scale of R's row. Padding passes everything on: (1, 0, 0, 0). Where NaN came out nothing comes in:
// direct is -1, otherwise it is not negative.

#include "factors.cuh"

__device__ __forceinline__ float4 swapped(float4 v) {
    return {__shfl_xor_sync(~0u, v.x, 4), __shfl_xor_sync(~0u, v.y, 4), __shfl_xor_sync(~0u, v.z, 4),
            __shfl_xor_sync(~0u, v.w, 4)};
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) factors(const __grid_constant__ ElementArgs a) {
    int q = threadIdx.x & 3, steps = a.chunk.end - a.chunk.start;
    const Chunk& c = a.chunk;
    int total = steps * a.groups * a.tiles;
    for (int i = blockIdx.x * WARPS + threadIdx.x / 32; i < total; i += gridDim.x * WARPS) {
        int tile = i % a.tiles, group = i / a.tiles % a.groups, step = i / a.tiles / a.groups;
        Place p = place_of(a, step, group, tile);
#pragma unroll
        for (int j = 0; j < ROWS / 4; ++j) {
            int in_group = row_of(q, j), row = group * ROWS + in_group;
            bool here = row < a.batch;
            Factors f[2];
            load_factors(a, p, j, here ? row : 0, f);
            byte flags = flags_of(a, p, group, in_group);
            const real* constants = (const real*)(c.workspace + a.constants) + p.unit * 8;
            float4 k[2];
#pragma unroll
            for (int u = 0; u < 2; ++u) {
                const Factors& v = f[u];
                const real* scale = constants + 8 * u;
                k[u] = {v.direct, where(v.bits >> 3 & 1, v.g * v.r * (float)scale[0]),
                        where(v.bits >> 4 & 1, v.z * (float)scale[1]), where(v.bits >> 5 & 1, v.g * v.c * (float)scale[2])};
                if (!(flags & ACTIVE)) k[u] = {1, 0, 0, 0};
                if (flags & IS_NAN) k[u] = {-1, 0, 0, 0};
            }
            // Neighbouring lanes swap, so that together they write 32 bytes at once.
            bool odd = threadIdx.x >> 2 & 1;
            float4 other = swapped(odd ? k[0] : k[1]);
            k[0] = odd ? other : k[0];
            k[1] = odd ? k[1] : other;
            int unit = p.unit - odd;
            float4* to = c.k + ((long long)step * a.batch + row) * a.hidden + unit;
            if (here && unit < a.hidden) to[0] = k[0];
            if (here && unit + 2 < a.hidden) to[2] = k[1];
        }
    }
}
