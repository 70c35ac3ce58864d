// Quantize the input, multiply by W, quantize to matmul.Wx: every time step at once, before the time loop.
//
// The codes are laid out as the loop's lanes read them: (time, row group, tile, lane, element), four codes an element
// (r, z, g and one that the loop fills). A tile of 8 columns is ROWS rows of one time step, or, where a row group has 4
// rows, those of two steps in turn.

#define COLUMN_TILES 4
#define COLUMNS (8 * COLUMN_TILES)

struct ProjectArgs {
    const stored* x;
    long long time_stride, batch_stride;
    const byte* active;          // (time, batch), or null
    const signed char* W_codes;  // (3, units, padded)
    const float* W_scale;        // (3, units)
    const int* W_offset;         // (3, units)
    word* codes;                 // (time, groups, tiles, 32, ELEMENTS * CODE_WORDS)
    byte* bits;                  // (time, groups, tiles, 32, 2, ELEMENTS), or null; this kernel writes the first half
    byte* flags;                 // (time, groups, ROWS)
    int time, batch, input, padded, tiles, groups;
    float x_scale, x_lo, x_hi;
    int x_offset;                // code = mantissa + offset fits int8
    float Wx_lo, Wx_hi;
};

struct Place {
    int t, group, row;
};

__device__ __forceinline__ Place place_of(const ProjectArgs& a, int column) {
#if ROWS == 4
    int pair = (column >> 3) / a.groups;
    return {2 * pair + (column & 1), (column >> 3) % a.groups, column >> 1 & 3};
#else
    int step = column / ROWS;
    return {step / a.groups, step % a.groups, column % ROWS};
#endif
}

__device__ void load_inputs(const ProjectArgs& a, int first, signed char* shared, int stride) {
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    bool aligned = (a.input | a.time_stride | a.batch_stride) % 4 == 0 && ((address)a.x & 15) == 0;
    // Four columns of a warp at once: their loads are in flight together.
    for (int j = 4 * warp; j < COLUMNS; j += 4 * warps) {
        const stored* from[4];
        int width[4];
        word lost = 0;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            Place p = place_of(a, first + j + c);
            int row = p.group * ROWS + p.row;
            width[c] = p.t < a.time && row < a.batch ? a.input : 0;
            from[c] = a.x + p.t * a.time_stride + row * a.batch_stride;
        }
        for (int k = 4 * lane; k < a.padded; k += 128) {
            float v[4][4];
#pragma unroll
            for (int c = 0; c < 4; ++c) load_four(v[c], from[c], k, width[c], aligned);
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                char4 packed;
                signed char* out = (signed char*)&packed;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (isnan(v[c][i])) lost |= 1 << c;
                    out[i] = (int)quantized(isnan(v[c][i]) ? 0.0f : v[c][i], a.x_scale, a.x_lo, a.x_hi) + a.x_offset;
                }
                *(char4*)(shared + (j + c) * stride + k) = packed;
            }
        }
        for (int i = 16; i; i >>= 1) lost |= __shfl_xor_sync(~0u, lost, i);
        if (lane < 4 && blockIdx.y == 0) {
            Place p = place_of(a, first + j + lane);
            if (p.t >= a.time || p.group >= a.groups) continue;
            int row = p.group * ROWS + p.row;
            bool active = row < a.batch && (a.active == nullptr || a.active[(long long)p.t * a.batch + row]);
            a.flags[((long long)p.t * a.groups + p.group) * ROWS + p.row] =
                (active ? ACTIVE : 0) | (lost >> lane & 1 ? LOST : 0);
        }
    }
}

__device__ __forceinline__ int requantized(const ProjectArgs& a, int acc, float scale, word& inside) {
    float v = rintf((float)acc * scale), c = fminf(fmaxf(v, a.Wx_lo), a.Wx_hi);
    inside = v == c;
    return (int)(c - a.Wx_lo);
}

extern "C" __global__ void __launch_bounds__(256, 2) project(const __grid_constant__ ProjectArgs a) {
    extern __shared__ int4 memory[];
    signed char* inputs = (signed char*)memory;
    int stride = (a.padded + 63) / 128 * 128 + 64;  // 64 bytes past a multiple of 128: 16-byte reads without conflicts
    int first = blockIdx.x * COLUMNS;
    load_inputs(a, first, inputs, stride);
    __syncthreads();
    int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, tile = blockIdx.y * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (tile >= a.tiles) return;
    int units = a.tiles * 16, unit = unit_of(tile, g);

    int acc[GATES][COLUMN_TILES][4];
    for (int gate = 0; gate < GATES; ++gate)
        for (int n = 0; n < COLUMN_TILES; ++n)
            for (int i = 0; i < 4; ++i) acc[gate][n][i] = a.W_offset[gate * units + unit + (i >> 1)];
#pragma unroll 2
    for (int k = 16 * q; k < a.padded; k += 64) {
        int4 low[GATES], high[GATES];
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate) {
            const signed char* row = a.W_codes + (long long)(gate * units + unit) * a.padded + k;
            low[gate] = *(const int4*)row;
            high[gate] = *(const int4*)(row + a.padded);
        }
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n) {
            int4 b = *(const int4*)(inputs + (n * 8 + g) * stride + k);
#pragma unroll
            for (int gate = 0; gate < GATES; ++gate) mma64(acc[gate][n], low[gate], high[gate], b);
        }
    }

    float scale[GATES][2];
    for (int gate = 0; gate < GATES; ++gate)
        for (int i = 0; i < 2; ++i) scale[gate][i] = a.W_scale[gate * units + unit + i];
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n) {
        Place p = place_of(a, first + n * 8);
#pragma unroll
        for (int j = 0; j < 2; ++j) {  // column 2q + j
            int t = ROWS == 4 ? p.t + j : p.t;
            if (t >= a.time || p.group >= a.groups) continue;
            int element = ROWS == 4 ? 0 : (p.row / 8 * 2 + j) * 2;
            long long slot = slot_of(t, a.groups, p.group, a.tiles, tile);
#pragma unroll
            for (int u = 0; u < 2; ++u) {
                int c[GATES];
                word bits = 0, inside;
#pragma unroll
                for (int gate = 0; gate < GATES; ++gate) {
                    c[gate] = requantized(a, acc[gate][n][2 * u + j], scale[gate][u], inside);
                    bits |= inside << gate;
                }
                pack_codes(a.codes + (slot * ELEMENTS + element + u) * CODE_WORDS, c[0], c[1], c[2], 0);
                if (a.bits != nullptr) a.bits[2 * slot * ELEMENTS + element + u] = bits;
            }
        }
    }
}
