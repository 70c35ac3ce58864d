// Around the large matrix products of the gradient: their integer operands before, the clamps of the parameters after.

struct OperandArgs {
    const stored* from;    // (time, batch, width), strided
    unsigned short* to;    // (time, batch, width) bfloat16 mantissas; exact, since they are below 2^8
    float* masked;         // (time, batch, width): set to 0 where `from` is clamped or NaN; or null
    long long time_stride, batch_stride;
    int time, batch, width, unused;
    float scale, lo, hi;
};

extern "C" __global__ void __launch_bounds__(256) operand(const __grid_constant__ OperandArgs a) {
    int lane = threadIdx.x & 31, rows = a.time * a.batch;
    bool aligned = (a.width | a.time_stride | a.batch_stride) % 4 == 0 && ((address)a.from & 15) == 0;
    for (int row = blockIdx.x * 8 + (threadIdx.x >> 5); row < rows; row += gridDim.x * 8) {
        const stored* from = a.from + row / a.batch * a.time_stride + row % a.batch * a.batch_stride;
        long long start = (long long)row * a.width;
        for (int k = 4 * lane; k < a.width; k += 128) {
            float v[4];
            load_four(v, from, k, a.width, aligned);
            unsigned short packed[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float m = rintf(v[i] * a.scale), held = fminf(fmaxf(m, a.lo), a.hi);
                packed[i] = __float_as_int(isnan(v[i]) ? 0.0f : held) >> 16;
                if (a.masked != nullptr && m != held && k + i < a.width) a.masked[start + k + i] = 0;
            }
            if (a.to == nullptr) continue;
            if (aligned) *(uint2*)(a.to + start + k) = *(uint2*)packed;
            else
                for (int i = 0; i < 4; ++i)
                    if (k + i < a.width) a.to[start + k + i] = packed[i];
        }
    }
}

struct MatrixGradient {
    const float* sums;       // (12 * pairs of units, stride), rows in backward's order
    const float* parameter;  // (3 * hidden, columns)
    const int* exponents;    // (3 * hidden)
    float* gradient;         // (3 * hidden, columns)
    int columns, stride;
    float scale, lo, hi;
};

struct VectorGradient {
    const float* parameter;
    const int* exponents;
    float* gradient;
    float lo, hi;
};

struct ParameterArgs {
    MatrixGradient W, R;
    VectorGradient bw, br;
    const float* bias_sums;  // (groups, 4, hidden): r, z, g and br_g
    int hidden, groups;
};

__device__ __forceinline__ bool passes(float v, int exponent, float lo, float hi) {
    float m = rintf(v * __int_as_float((exponent + 127) << 23));
    return m >= lo && m <= hi;
}

__device__ void matrix_gradient(const MatrixGradient& m, int hidden, int row) {
    int gate = row / hidden, unit = row % hidden;
    int pairs = (hidden + 3) / 4 * 2, first = gate < 2 ? unit / 2 * 8 + gate * 4 : pairs * 8 + unit / 2 * 4;
    const float* sums = m.sums + (long long)(first + unit % 2) * m.stride;
    for (int column = threadIdx.x; column < m.columns; column += blockDim.x) {
        long long at = (long long)row * m.columns + column;
        float v = sums[column] + sums[2 * m.stride + column];
        m.gradient[at] = passes(m.parameter[at], m.exponents[row], m.lo, m.hi) ? v * m.scale : 0.0f;
    }
}

// A block a row of the parameters, and one more for 128 of the biases' sums.
extern "C" __global__ void __launch_bounds__(128) parameters(const __grid_constant__ ParameterArgs a) {
    int rows = GATES * a.hidden, row = blockIdx.x;
    if (row < rows) {
        matrix_gradient(a.W, a.hidden, row);
        matrix_gradient(a.R, a.hidden, row);
        return;
    }
    int i = (row - rows) * 128 + threadIdx.x, part = i / a.hidden, unit = i % a.hidden;
    if (part > GATES) return;
    float v = 0;
    for (int group = 0; group < a.groups; ++group) v += a.bias_sums[((long long)group * 4 + part) * a.hidden + unit];
    int channel = part == GATES ? i - a.hidden : i;
    const VectorGradient &bw = a.bw, &br = a.br;
    if (part < GATES) bw.gradient[i] = passes(bw.parameter[i], bw.exponents[i], bw.lo, bw.hi) ? v : 0.0f;
    if (part != 2) br.gradient[channel] = passes(br.parameter[channel], br.exponents[channel], br.lo, br.hi) ? v : 0.0f;
}
