// What the reverse walk multiplies with, for every element of a chunk at once: (direct, r, z, g).
//
// With d the gradient of a new state, direct * d goes to the state before, and r * d, z * d, g * d are the gradients of
// R h, times the scale of R's row. Padding passes everything on: (1, 0, 0, 0). Where NaN came out nothing comes in:
// direct is -0, otherwise it is not negative.

extern "C" __global__ void __launch_bounds__(256) factors(const __grid_constant__ ElementArgs a) {
    int q = threadIdx.x & 3, steps = a.chunk.end - a.chunk.start;
    const Chunk& c = a.chunk;
    BothTables tables(a);
    int total = steps * a.groups * a.tiles;
    for (int i = blockIdx.x * 8 + threadIdx.x / 32; i < total; i += gridDim.x * 8) {
        int tile = i % a.tiles, group = i / a.tiles % a.groups, step = i / a.tiles / a.groups;
        Place p = place_of(a, step, group, tile);
        if (!p.units[0]) continue;
#pragma unroll
        for (int j = 0; j < ROWS / 4; ++j) {
            int in_group = row_of(q, j), row = group * ROWS + in_group;
            if (row >= a.batch) continue;
            Factors f[2];
            load_factors(a, tables, p, j, row, f);
            bool active = is_active(a, p, group, in_group);
            bool lost = isnan(c.out[p.t * c.out_time + row * c.out_batch + p.unit]);
            const real* constants = (const real*)(c.workspace + a.constants) + p.unit * 8;
#pragma unroll
            for (int u = 0; u < 2; ++u) {
                if (!p.units[u]) continue;
                const Factors& v = f[u];
                const real* scale = constants + 8 * u;
                float4 k = {v.direct, where(v.bits >> 3 & 1, v.g * v.r * (float)scale[0]),
                            where(v.bits >> 4 & 1, v.z * (float)scale[1]), where(v.bits >> 5 & 1, v.g * v.c * (float)scale[2])};
                if (!active) k = {1, 0, 0, 0};
                if (lost) k = {-0.0f, 0, 0, 0};
                c.k[((long long)step * a.batch + row) * a.hidden + p.unit + u] = k;
            }
        }
    }
}
