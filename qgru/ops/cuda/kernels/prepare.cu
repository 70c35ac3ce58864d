// Quantize the parameters: one warp a row of the gate matrices (row = gate * units + unit).
//
// Writes plain row-major int8 mantissas, zero where padded, and for every row what the time loop needs: the scale from
// W x (R h) to its grid, the correction for the activations' offset codes, and the biases in steps of their sum's grid.

struct PrepareArgs {
    const float *W, *R, *bw, *br;
    const int* exponents;      // (4, 3 * hidden): W, R, bw, br
    signed char *W_codes;      // (3, units, padded_input)
    signed char *R_codes;      // (3, units, padded_hidden)
    signed char *Rt_codes;     // (units, 3, padded_hidden), zeroed, or null
    float* W_scale;            // (3, units)
    int* W_offset;             // (3, units)
    int* R_offset;             // (3, units)
    real* constants;           // (units, 8): Rh scales r z g, unused; biases r z g, br_g
    byte* diverged;            // (3, units): a NaN in the row
    int hidden, input, units, padded_hidden, padded_input;
    int Wx_exponent, Rh_exponent, x_exponent, h_exponent, x_offset, h_offset;
    int pre_exponent[4];       // of the grids that the biases r, z, g and br_g are added for
    float W_lo, W_hi, R_lo, R_hi, bw_lo, bw_hi, br_lo, br_hi;
};

__device__ __forceinline__ float power_of_two(int n) { return __int_as_float((n + 127) << 23); }

// Quantize one row; return the sum of its mantissas over the warp, and whether this lane saw a NaN in `lost`.
__device__ int quantize_row(const float* from, int length, float scale, float lo, float hi, signed char* to, int padded,
                            bool& lost) {
    int lane = threadIdx.x & 31, total = 0;
    for (int k = 4 * lane; k < padded; k += 128) {
        char4 packed;
        signed char* out = (signed char*)&packed;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float v = from != nullptr && k + i < length ? from[k + i] : 0.0f;
            lost |= isnan(v);
            int m = isnan(v) ? 0 : (int)quantized(v, scale, lo, hi);
            out[i] = m;
            total += m;
        }
        *(char4*)(to + k) = packed;
    }
    for (int i = 16; i; i >>= 1) total += __shfl_xor_sync(~0u, total, i);
    __syncwarp();  // the row is read again, by other lanes
    return total;
}

__device__ double bias(float v, int exponent, float lo, float hi, int destination, bool& lost) {
    lost |= isnan(v);
    float m = isnan(v) ? 0.0f : quantized(v, power_of_two(exponent), lo, hi);
    return m * exp2((double)(destination - exponent));
}

extern "C" __global__ void __launch_bounds__(128) prepare(const __grid_constant__ PrepareArgs a) {
    int row = blockIdx.x * 4 + (threadIdx.x >> 5), gate = row / a.units, unit = row % a.units;
    if (gate >= GATES) return;
    bool real_row = unit < a.hidden, lost = false;
    int channel = gate * a.hidden + (real_row ? unit : 0), channels = GATES * a.hidden;
    const int* n = a.exponents;
    int n_W = n[channel], n_R = n[channels + channel], n_bw = n[2 * channels + channel], n_br = n[3 * channels + channel];
    const float* W = real_row ? a.W + (long long)channel * a.input : nullptr;
    const float* R = real_row ? a.R + (long long)channel * a.hidden : nullptr;
    int W_sum = quantize_row(W, a.input, power_of_two(n_W), a.W_lo, a.W_hi,
                             a.W_codes + (long long)row * a.padded_input, a.padded_input, lost);
    int R_sum = quantize_row(R, a.hidden, power_of_two(n_R), a.R_lo, a.R_hi,
                             a.R_codes + (long long)row * a.padded_hidden, a.padded_hidden, lost);
    double bw = real_row ? bias(a.bw[channel], n_bw, a.bw_lo, a.bw_hi, a.pre_exponent[gate], lost) : 0.0;
    int destination = gate == 2 ? a.pre_exponent[3] : a.pre_exponent[gate];
    double br = real_row ? bias(a.br[channel], n_br, a.br_lo, a.br_hi, destination, lost) : 0.0;
    lost = __any_sync(~0u, lost);
    if (a.Rt_codes != nullptr && real_row) {
        const signed char* from = a.R_codes + (long long)row * a.padded_hidden;
        for (int k = threadIdx.x & 31; k < a.hidden; k += 32)
            a.Rt_codes[((long long)k * GATES + gate) * a.padded_hidden + unit] = from[k];
    }
    if (threadIdx.x & 31) return;
    a.W_scale[row] = real_row ? exp2f(a.Wx_exponent - n_W - a.x_exponent) : 0.0f;
    a.W_offset[row] = W_sum * a.x_offset;
    a.R_offset[row] = R_sum * a.h_offset;
    a.diverged[row] = lost;
    real* c = a.constants + unit * 8;
    c[gate] = real_row ? (real)exp2((double)(a.Rh_exponent - n_R - a.h_exponent)) : (real)0;
    if (gate < 2) {
        c[4 + gate] = (real)(bw + br);
    } else {
        c[3] = 0;
        c[6] = (real)bw;
        c[7] = (real)br;
    }
}
