// The gradient of one element, and its way into the fixed point of the recurrent product.

// The gradients of one element are its dh times these: nothing of it waits for the previous step's product.
struct Factors {
    float direct, z, g, c, r;  // c and r multiply g's gradient
    word bits;                 // of the clamps of Wx and, from bit 3 on, of Rh
    float h;                   // mantissa of the state before
};

__device__ __forceinline__ float where(bool inside, float v) { return inside ? v : 0.0f; }

// `Wx_bits` as project wrote them, `bits` as forward did.
__device__ __forceinline__ Factors factors_of(const BackwardArgs& a, const Tables& values, const Tables& slopes,
                                              const word* codes, word Wx_bits, word bits, real br_g, float h_real) {
    const Numbers& n = a.n;
    int i_r = plain_code(codes, 0), i_z = plain_code(codes, 1), i_g = plain_code(codes, 2);
    real r = table(values.r, i_r), z = table(values.z, i_z), g = table(values.g, i_g);
    real h = h_real * n.h_steps;
    Blend b = blended(n, z, g, h);
    bool passes = b.y_h == b.h, old_passes = passes && b.y_old == b.old_contrib;
    bool new_passes = passes && b.y_new == b.new_contrib;
    real Rh_g = (real)plain_code(codes, 3) + n.Rh_least;
    real y_c = sum(fused(Rh_g, n.c_from_Rh, br_g), ROUND), c_held = clamped(y_c, n.c_lo, n.c_hi);
    real c = sum(c_held, -ROUND), y_m = fused(r, c, ROUND);
    bool m_passes = y_m == clamped(y_m, n.m_lo, n.m_hi);
    Factors f;
    f.direct = where(old_passes, (float)z * a.z_value);
    f.z = where(bits >> 4 & 1, (where(old_passes, h_real) - where(new_passes, (float)g * a.g_value)) * table(slopes.z, i_z));
    f.g = where(new_passes && bits >> 5 & 1, (float)b.complement * table(slopes.g, i_g));
    f.c = where(m_passes && y_c == c_held, (float)r * a.r_value);
    f.r = where(m_passes && bits >> 3 & 1, (float)c * a.c_value * table(slopes.r, i_r));
    f.bits = Wx_bits | (bits & 7) << 3;
    f.h = h;
    return f;
}

__device__ __forceinline__ word bfloat_pair(float a, float b) {
    word packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(b), "f"(a));
    return packed;
}

// Two neighbours' numbers as two bfloat16 terms each, in the order (term, unit): 2^-18 of a number is lost.
__device__ __forceinline__ uint2 pieces(float a, float b) {
    word first = bfloat_pair(a, b);
    return make_uint2(first, bfloat_pair(a - __int_as_float(first << 16), b - __int_as_float(first & 0xFFFF0000)));
}

__device__ __forceinline__ void store_gates(uint2* row, int pair, const uint2* gates) {
    *(uint4*)(row + 2 * pair) = make_uint4(gates[0].x, gates[0].y, gates[1].x, gates[1].y);
    row[2 * PAIRS + pair] = gates[2];
}

// A pair of neighbours' limbs into the columns of a lane's row.
__device__ __forceinline__ void write_limbs(Shared& s, int j, int q, int k, float a, float b, float scale) {
    int m = __float_as_int(__fmaf_rn(a, scale, 12582912.0f)) - 0x4B400000, n = __float_as_int(__fmaf_rn(b, scale, 12582912.0f)) - 0x4B400000;
#pragma unroll
    for (int limb = LIMBS - 1; limb >= 0; --limb) {
        int column = limb == 2 ? (ROWS_A_LANE + j) * 8 + 2 * q : j * 8 + 2 * q + limb;
        *(unsigned short*)&s.limbs[column][k] = __byte_perm(m, n, 0x0040);
        if (limb == 2) *(unsigned short*)&s.limbs[column + 1][k] = 0;
        m = m + 128 >> 8;
        n = n + 128 >> 8;
    }
}

__device__ __forceinline__ void share_limbs(Shared& s, int first_unit) {
#if CLUSTER > 1
    __syncthreads();
    constexpr int chunks = UNITS / 16, total = 8 * COLUMN_TILES * GATES * chunks;
    int rank = first_unit / UNITS;
    for (int i = threadIdx.x; i < total; i += THREADS) {
        int column = i / (GATES * chunks), gate = i / chunks % GATES;
        const signed char* from = &s.limbs[column][gate * PADDED + first_unit + i % chunks * 16];
        int4 v = *(const int4*)from;
        for (int peer = 0; peer < CLUSTER; ++peer)
            if (peer != rank) store_remote(address_in(shared_address(from), peer), v);
    }
    constexpr int scales = ROWS / 4;
    for (int i = threadIdx.x; i < scales * CLUSTER; i += THREADS) {
        const float* from = &s.steps[rank][i % scales * 4];
        if (i / scales != rank) store_remote(address_in(shared_address(from), i / scales), *(const int4*)from);
    }
#endif
    cluster_barrier();
}

__device__ __forceinline__ void load_factors(const BackwardArgs& a, const Shared& s, const Tables& values,
                                             const Tables& slopes, int stage, int tile,
                                             Factors (&factors)[TILES_A_WARP][ELEMENTS]) {
    int g = (threadIdx.x & 31) >> 2;
#pragma unroll
    for (int i = 0; i < TILES_A_WARP; ++i) {
        int unit = unit_of(tile + i, g);
        const word* codes = s.codes[stage][i][threadIdx.x];
        const byte* bits = (const byte*)s.bits[stage][i][threadIdx.x];
#pragma unroll
        for (int j = 0; j < ROWS_A_LANE; ++j) {
            float2 before = s.before[stage][i][j][threadIdx.x];
#pragma unroll
            for (int u = 0; u < 2; ++u) {
                int e = 2 * j + u;
                float h = u ? before.y : before.x;
                factors[i][e] = factors_of(a, values, slopes, codes + e * CODE_WORDS, bits[e], bits[ELEMENTS + e],
                                           s.constants[u][1][unit / 2][3], isnan(h) ? 0.0f : h);
            }
        }
    }
}
