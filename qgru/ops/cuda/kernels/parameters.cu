// The gradients of the parameters, from the large products and the sums: terms added up, zero where one is clamped.

#include "pairs.cuh"

struct ParameterTensors {
    const float *W_sums, *R_sums;  // (12 * pairs of units, terms * width): rows as in pairs.cuh
    const float *W, *R, *bw, *br;
    const int* exponents;          // (4, 3 * hidden)
    float *dW, *dR, *dbw, *dbr;
    const float* bias_sums;        // (partials, 4, hidden): r, z, g and br_g
};

struct ParameterArgs {
    ParameterTensors tensors;
    int hidden, partials, input;
    int x_terms, x_width, h_terms, h_width;
    float x_step, h_step;          // value of one step
    float lo[4], hi[4];            // ranges of the four operators' mantissas
};

__device__ __forceinline__ bool passes(const ParameterArgs& a, int operand, float v, int row) {
    int exponent = a.tensors.exponents[operand * GATES * a.hidden + row];
    float m = rintf(v * __int_as_float((exponent + 127) << 23));
    return m >= a.lo[operand] && m <= a.hi[operand];
}

__device__ void matrix_gradient(const ParameterArgs& a, int operand, int row) {
    const float* sums = operand ? a.tensors.R_sums : a.tensors.W_sums;
    const float* parameter = operand ? a.tensors.R : a.tensors.W;
    float *gradient = operand ? a.tensors.dR : a.tensors.dW, step = operand ? a.h_step : a.x_step;
    int columns = operand ? a.hidden : a.input, width = operand ? a.h_width : a.x_width;
    int terms = operand ? a.h_terms : a.x_terms, stride = terms * width, gate = row / a.hidden, unit = row % a.hidden;
    int pairs = PAIRS_OF(a.hidden), first = gate < 2 ? unit / 2 * 8 + gate * 4 : pairs * 8 + unit / 2 * 4;
    sums += (long long)(first + unit % 2) * stride;
    for (int column = threadIdx.x; column < columns; column += blockDim.x) {
        long long at = (long long)row * columns + column;
        float v = sums[column] + sums[2 * stride + column];
        if (terms == 2) v += sums[width + column] + sums[2 * stride + width + column];
        gradient[at] = passes(a, operand, parameter[at], row) ? v * step : 0.0f;
    }
}

// A block a row of the parameters, then a warp a sum of the biases.
extern "C" __global__ void __launch_bounds__(32 * WARPS) parameters(const __grid_constant__ ParameterArgs a) {
    int rows = GATES * a.hidden, row = blockIdx.x, lane = threadIdx.x & 31;
    if (row < rows) {
        matrix_gradient(a, 0, row);
        matrix_gradient(a, 1, row);
        return;
    }
    int i = (row - rows) * WARPS + threadIdx.x / 32;
    if (i >= 4 * a.hidden) return;
    float v = 0;
    for (int partial = lane; partial < a.partials; partial += 32) v += a.tensors.bias_sums[(long long)partial * 4 * a.hidden + i];
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(~0u, v, d);
    if (lane) return;
    int part = i / a.hidden, channel = part == GATES ? i - a.hidden : i;
    if (part < GATES) a.tensors.dbw[i] = passes(a, 2, a.tensors.bw[i], i) ? v : 0.0f;
    if (part != 2) a.tensors.dbr[channel] = passes(a, 3, a.tensors.br[channel], channel) ? v : 0.0f;
}
