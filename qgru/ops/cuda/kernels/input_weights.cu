// W's terms for the product that gives the input's gradient.

#include "input.cuh"
#include "pairs.cuh"

extern "C" __global__ void __launch_bounds__(32 * WARPS) input_weights(const __grid_constant__ InputArgs a) {
    int pairs = PAIRS_OF(a.hidden), row = blockIdx.x, in_g = row - 8 * pairs;
    int gate = in_g < 0 ? row / 4 % 2 : 2, unit = (in_g < 0 ? row / 8 : in_g / 4) * 2 + row % 2;
    bool here = unit < a.hidden;
    float step = here ? exp2f(-a.tensors.exponents[gate * a.hidden + unit]) : 0.0f;
    const signed char* codes = (const signed char*)(a.tensors.workspace + a.W_codes);
    for (int k = threadIdx.x; k < W_LIMBS * a.x_width; k += blockDim.x) {
        int limb = k / a.x_width, column = k % a.x_width;
        float m = 0;
        if (here && column < a.input) {
            signed char code = codes[((long long)(limb * GATES + gate) * a.units + unit) * a.W_padded + column];
            m = W_LIMBS == 1 ? code : limb ? (byte)code : 256 * code;
        }
        a.tensors.weights[(long long)row * W_LIMBS * a.x_width + k] = __float_as_int(m * step) >> 16;
    }
}
