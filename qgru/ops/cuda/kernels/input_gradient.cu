// The input's gradient from that product: terms added up, zero where the input is clamped.

#include "input.cuh"
#include "stored.cuh"

extern "C" __global__ void __launch_bounds__(32 * WARPS) input_gradient(const __grid_constant__ InputArgs a) {
    int lane = threadIdx.x & 31;
    for (int row = blockIdx.x * WARPS + threadIdx.x / 32; row < a.tensors.rows; row += gridDim.x * WARPS) {
        const stored* x = (const stored*)a.tensors.x + row / a.batch * a.tensors.x_time + row % a.batch * a.tensors.x_batch;
        const float* products = a.tensors.products + (long long)row * W_LIMBS * a.x_width;
        for (int k = lane; k < a.input; k += 32) {
            float m = rintf(widened(x[k]) * a.x_scale), v = products[k];
            if (W_LIMBS == 2) v += products[a.x_width + k];
            a.tensors.dx[(long long)row * a.input + k] = m >= a.x_lo && m <= a.x_hi ? v : 0.0f;
        }
    }
}
