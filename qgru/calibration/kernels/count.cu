// Count float32 values into a histogram's bins: see qgru/calibration/histogram.py, which defines them.

#define KEYS (1 << KEY_BITS)  // sign, exponent and the first bits of the mantissa
#define DROPPED_BITS (32 - KEY_BITS)

typedef unsigned long long count_type;

struct CountArgs {
    const float* values;
    long long length;
    count_type* table;  // (3, KEYS): counts, sums and sums of squares of the positions inside a bin
    int* bounds;        // least and most value, as integers of the same order
};

__device__ __forceinline__ int ordered(int bits) { return bits < 0 ? bits ^ 0x7FFFFFFF : bits; }

extern "C" __global__ void __launch_bounds__(32 * WARPS) count(const __grid_constant__ CountArgs a) {
    int low = 0x7FFFFFFF, high = -low - 1, lane = threadIdx.x & 31;
    long long step = (long long)gridDim.x * blockDim.x, padded = (a.length + 31) / 32 * 32;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < padded; i += step) {
        bool here = i < a.length;
        int bits = here ? __float_as_int(a.values[i] + 0.0f) : 0, key = bits >> DROPPED_BITS & KEYS - 1;
        if (here) low = min(low, ordered(bits)), high = max(high, ordered(bits));
        // Many equal values would wait for one another: a warp adds up what it has of its first lane's.
        count_type position = bits & (1 << DROPPED_BITS) - 1;
        int first = __shfl_sync(~0u, bits, 0);
        unsigned same = __ballot_sync(~0u, here && bits == first);
        bool grouped = same >> lane & 1;
        if (!here || (grouped && lane)) continue;
        count_type times = grouped ? __popc(same) : 1;
        atomicAdd(a.table + key, times);
        if (position == 0) continue;
        atomicAdd(a.table + KEYS + key, times * position);
        atomicAdd(a.table + 2 * KEYS + key, times * position * position);
    }
    for (int d = 16; d; d >>= 1) {
        low = min(low, __shfl_xor_sync(~0u, low, d));
        high = max(high, __shfl_xor_sync(~0u, high, d));
    }
    if (lane == 0) {
        atomicMin(a.bounds, low);
        atomicMax(a.bounds + 1, high);
    }
}
