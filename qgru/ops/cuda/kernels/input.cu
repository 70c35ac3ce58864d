// Around the input's gradient, a product of the gates' gradients with W: W's terms before, the clamps after.

struct InputArgs {
    const byte* workspace;
    const int* exponents;     // (4, 3 * hidden)
    unsigned short* weights;  // (12 * pairs of units, terms * x_width) bfloat16: exact, in the order of pieces.cu
    const void* x;            // (steps, batch, input), strided
    const float* products;    // (steps, batch, terms * x_width)
    float* dx;                // (steps, batch, input)
    long long x_time, x_batch;
    int rows, unused;         // rows: steps * batch
    long long W_codes;        // section (terms, 3, units, W_padded)
    int batch, input, x_width, hidden, units, W_padded;
    float x_scale, x_lo, x_hi;
    int reserved;
};

extern "C" __global__ void __launch_bounds__(128) input_weights(const __grid_constant__ InputArgs a) {
    int pairs = (a.hidden + 3) / 4 * 2, row = blockIdx.x, in_g = row - 8 * pairs;
    int gate = in_g < 0 ? row / 4 % 2 : 2, unit = (in_g < 0 ? row / 8 : in_g / 4) * 2 + row % 2;
    bool here = unit < a.hidden;
    float step = here ? exp2f(-a.exponents[gate * a.hidden + unit]) : 0.0f;
    const signed char* codes = (const signed char*)(a.workspace + a.W_codes);
    for (int k = threadIdx.x; k < W_LIMBS * a.x_width; k += blockDim.x) {
        int limb = k / a.x_width, column = k % a.x_width;
        float m = 0;
        if (here && column < a.input) {
            signed char code = codes[((long long)(limb * GATES + gate) * a.units + unit) * a.W_padded + column];
            m = W_LIMBS == 1 ? code : limb ? (byte)code : 256 * code;
        }
        a.weights[(long long)row * W_LIMBS * a.x_width + k] = __float_as_int(m * step) >> 16;
    }
}

extern "C" __global__ void __launch_bounds__(256) input_gradient(const __grid_constant__ InputArgs a) {
    int lane = threadIdx.x & 31;
    for (int row = blockIdx.x * 8 + threadIdx.x / 32; row < a.rows; row += gridDim.x * 8) {
        const stored* x = (const stored*)a.x + row / a.batch * a.x_time + row % a.batch * a.x_batch;
        const float* products = a.products + (long long)row * W_LIMBS * a.x_width;
        for (int k = lane; k < a.input; k += 32) {
            float m = rintf(widened(x[k]) * a.x_scale), v = products[k];
            if (W_LIMBS == 2) v += products[a.x_width + k];
            a.dx[(long long)row * a.input + k] = m >= a.x_lo && m <= a.x_hi ? v : 0.0f;
        }
    }
}
