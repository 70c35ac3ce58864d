// Quantize the parameters and the input: one warp a row of the gate matrices (row = gate * units + unit), then one a
// row of the input (a batch row of a time step, padded to whole row groups).
//
// Writes plain row-major integers, zero where padded, and for every row of the matrices what comes after its product:
// the scale to the destination's grid, the correction for the activations' offset codes, and the biases in steps of
// their sum's grid.

#include "call.cuh"
#include "real.cuh"
#include "stored.cuh"

struct Matrix {
    long long codes, offset;   // sections: (limbs, 3, units, padded); (3, units), what the code's offset adds
    int length, padded;
    float lo, hi;
    int destination, operand;  // exponents of the product's grid and of the activation's
    int code_offset;           // of the activation: mantissa = code + this
};

struct PrepareArgs {
    Call call;
    Matrix W, R;
    long long Rt, W_scale;     // sections: (limbs, Rt_rows, 3, Rt_padded); (3, units)
    long long constants;       // section (units, 8): Rh scales r z g, unused; biases r z g, br_g
    long long diverged;        // section (3, units): a NaN in the row
    long long x_codes, flags;  // sections (limbs, time, rows, W.padded); (time, rows)
    int hidden, units, all_units;  // all_units: what Rt pads to, too
    int Rt_rows, Rt_padded;    // no Rt where these are 0
    int time, batch, rows;     // rows: groups * ROWS
    int pre_exponent[4];       // of the grids that the biases r, z, g and br_g are added for
    float bw_lo, bw_hi, br_lo, br_hi;
    float x_scale, x_lo, x_hi;
    int x_offset;              // code = mantissa + this
};

__device__ __forceinline__ float power_of_two(int n) { return __int_as_float((n + 127) << 23); }

template <int limbs>
__device__ __forceinline__ void write_codes(signed char* to, long long plane, const int* codes) {
    if (limbs == 2) {
        *(char4*)to = make_char4(upper_limb(codes[0]), upper_limb(codes[1]), upper_limb(codes[2]), upper_limb(codes[3]));
        *(uchar4*)(to + plane) =
            make_uchar4(lower_limb(codes[0]), lower_limb(codes[1]), lower_limb(codes[2]), lower_limb(codes[3]));
    } else {
        *(char4*)to = make_char4(codes[0], codes[1], codes[2], codes[3]);
    }
}

// Quantize row `row` of a matrix; return the sum of its mantissas over the warp, and whether this lane saw a NaN.
template <int limbs>
__device__ long long quantize_row(const Matrix& m, const float* from, signed char* to, long long plane, float scale,
                                  bool& is_nan) {
    int lane = threadIdx.x & 31;
    long long total = 0;
    for (int k = 4 * lane; k < m.padded; k += 128) {
        int codes[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float v = from != nullptr && k + i < m.length ? from[k + i] : 0.0f;
            is_nan |= isnan(v);
            codes[i] = isnan(v) ? 0 : (int)quantized(v, scale, m.lo, m.hi);
            total += codes[i];
        }
        write_codes<limbs>(to + k, plane, codes);
    }
    for (int i = 16; i; i >>= 1) total += __shfl_xor_sync(~0u, total, i);
    __syncwarp();  // the row is read again, by other lanes
    return total;
}

__device__ double bias(float v, float lo, float hi, int exponent, int destination, bool& is_nan) {
    is_nan |= isnan(v);
    float m = isnan(v) ? 0.0f : quantized(v, power_of_two(exponent), lo, hi);
    return m * exp2((double)(destination - exponent));
}

// Write a row of R, or zeros, as a column of Rt.
__device__ void transpose_row(const PrepareArgs& a, const signed char* from, int gate, int unit, long long plane) {
    signed char* to = section<signed char>(a.call, a.Rt);
    long long to_plane = (long long)a.Rt_rows * GATES * a.Rt_padded;
#pragma unroll
    for (int limb = 0; limb < R_LIMBS; ++limb)
        for (int k = threadIdx.x & 31; k < a.Rt_rows; k += 32)
            to[limb * to_plane + ((long long)k * GATES + gate) * a.Rt_padded + unit] =
                from != nullptr && k < a.hidden ? from[limb * plane + k] : 0;
}

__device__ void prepare_parameters(const PrepareArgs& a, int gate, int unit) {
    const Call& call = a.call;
    int row = gate * a.units + unit, rows = GATES * a.units;
    bool real_row = unit < a.hidden, is_nan = false;
    int channel = gate * a.hidden + (real_row ? unit : 0), channels = GATES * a.hidden;
    const int* n = call.exponents;
    int n_W = n[channel], n_R = n[channels + channel], n_bw = n[2 * channels + channel], n_br = n[3 * channels + channel];
    const float* W = real_row ? call.W + (long long)channel * a.W.length : nullptr;
    const float* R = real_row ? call.R + (long long)channel * a.R.length : nullptr;
    long long W_plane = (long long)rows * a.W.padded, R_plane = (long long)rows * a.R.padded;
    signed char* W_codes = section<signed char>(call, a.W.codes) + (long long)row * a.W.padded;
    signed char* R_codes = section<signed char>(call, a.R.codes) + (long long)row * a.R.padded;
    long long W_sum = quantize_row<W_LIMBS>(a.W, W, W_codes, W_plane, power_of_two(n_W), is_nan);
    long long R_sum = quantize_row<R_LIMBS>(a.R, R, R_codes, R_plane, power_of_two(n_R), is_nan);
    int br_exponent = a.pre_exponent[gate == 2 ? 3 : gate];
    double bw = real_row ? bias(call.bw[channel], a.bw_lo, a.bw_hi, n_bw, a.pre_exponent[gate], is_nan) : 0.0;
    double br = real_row ? bias(call.br[channel], a.br_lo, a.br_hi, n_br, br_exponent, is_nan) : 0.0;
    is_nan = __any_sync(~0u, is_nan);
    if (unit < a.Rt_padded) transpose_row(a, R_codes, gate, unit, R_plane);
    if (threadIdx.x & 31) return;
    section<float>(call, a.W_scale)[row] = real_row ? exp2f(a.W.destination - n_W - a.W.operand) : 0.0f;
    section<sum_type>(call, a.W.offset)[row] = (sum_type)(W_sum * a.W.code_offset);
    section<sum_type>(call, a.R.offset)[row] = (sum_type)(R_sum * a.R.code_offset);
    section<byte>(call, a.diverged)[row] = is_nan;
    real* c = section<real>(call, a.constants) + unit * 8;
    c[gate] = real_row ? (real)exp2((double)(a.R.destination - n_R - a.R.operand)) : (real)0;
    if (gate < 2) {
        c[4 + gate] = (real)(bw + br);
    } else {
        c[3] = 0;
        c[6] = (real)bw;
        c[7] = (real)br;
    }
}

__device__ void prepare_input(const PrepareArgs& a, int i) {
    const Call& call = a.call;
    int t = i / a.rows, row = i % a.rows, lane = threadIdx.x & 31;
    bool here = row < a.batch;
    bool aligned = (a.W.length | call.x_time | call.x_batch) % 4 == 0 && ((address)call.x & 15) == 0;
    const stored* from = (const stored*)call.x + t * call.x_time + (here ? row : 0) * call.x_batch;
    signed char* to = section<signed char>(call, a.x_codes) + (long long)i * a.W.padded;
    long long plane = (long long)a.time * a.rows * a.W.padded;
    bool is_nan = false;
    for (int k = 4 * lane; k < a.W.padded; k += 128) {
        float v[4];
        load_four(v, from, k, here ? a.W.length : 0, aligned);
        int codes[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            is_nan |= isnan(v[c]);
            codes[c] = (int)quantized(isnan(v[c]) ? 0.0f : v[c], a.x_scale, a.x_lo, a.x_hi) + a.x_offset;
        }
        write_codes<X_LIMBS>(to + k, plane, codes);
    }
    is_nan = __any_sync(~0u, is_nan);
    bool active = here && (call.active == nullptr || call.active[(long long)t * a.batch + row]);
    if (lane == 0) section<byte>(call, a.flags)[i] = (active ? ACTIVE : 0) | (is_nan ? IS_NAN : 0);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) prepare(const __grid_constant__ PrepareArgs a) {
    int i = blockIdx.x * WARPS + (threadIdx.x >> 5), rows = GATES * a.all_units, gate = i / a.all_units, unit = i % a.all_units;
    if (i < rows && unit < a.units) prepare_parameters(a, gate, unit);
    else if (i < rows) transpose_row(a, nullptr, gate, unit, 0);
    else if (i - rows < a.time * a.rows) prepare_input(a, i - rows);
}
