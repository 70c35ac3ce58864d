// Copies to shared memory in the background, and wide stores.
#pragma once
#include "base.cuh"

// Copy `bytes` (4, 8 or 16) to shared memory in the background; zeros where `valid` is false.
template <int bytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(bytes),
                 "r"(valid ? bytes : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"); }

template <int bytes>
__device__ __forceinline__ void copy_all(void* to, const void* from, bool valid) {
    constexpr int piece = bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : 4;
#pragma unroll
    for (int i = 0; i < bytes; i += piece) copy_async<piece>((byte*)to + i, (const byte*)from + i, valid);
}

template <int words>
__device__ __forceinline__ void store(word* to, const word* from) {
    if constexpr (words == 1) {
        *to = *from;
    } else if constexpr (words % 4) {
#pragma unroll
        for (int i = 0; i < words; i += 2) *(uint2*)(to + i) = make_uint2(from[i], from[i + 1]);
    } else {
#pragma unroll
        for (int i = 0; i < words; i += 4) *(uint4*)(to + i) = make_uint4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
}
