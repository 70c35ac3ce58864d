// A cluster of CTAs: barriers, and the exchange of slices through each other's shared memory.
#pragma once
#include "base.cuh"

#if CLUSTER > 1
__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_barrier() {
    cluster_arrive();
    cluster_wait();
}
__device__ __forceinline__ word address_in(word local, int rank) {
    word remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
    return remote;
}
// An exchange of slices between the CTAs of a cluster: each copies its slice of a double buffer to the same place of
// all others and waits on its own barrier for theirs. One barrier a buffer: a CTA is at most one step ahead, and its
// slice of the step after next leaves only once every other has this step's, so that nothing is overwritten unread.
struct Arrivals {
    address barriers[2];

    __device__ __forceinline__ void init() {  // one thread, before a cluster_barrier
        for (int i = 0; i < 2; ++i)
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&barriers[i])) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }

    // Lanes 0 to CLUSTER - 1 of one warp; the slice is complete, and every thread that wrote it called `publish` before
    // the barrier that says so.
    template <int bytes>
    __device__ __forceinline__ void send(int buffer, const void* slice, int lane, int rank) {
        word own = shared_address(&barriers[buffer]), from = shared_address(slice);
        if (lane == rank)
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(own), "n"(bytes * (CLUSTER - 1))
                         : "memory");
        else if (lane < CLUSTER)
            asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                             address_in(from, lane)),
                         "r"(from), "n"(bytes), "r"(address_in(own, lane))
                         : "memory");
    }

    __device__ __forceinline__ void wait(int buffer, int phase) {
        word done;
        do asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
                        "selp.u32 %0, 1, 0, p;\n}" : "=r"(done) : "r"(shared_address(&barriers[buffer])), "r"(phase)
                        : "memory");
        while (!done);
    }
};
// What this thread wrote to shared memory may be read by copies that start after the next barrier.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#else
__device__ __forceinline__ int cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_barrier() { __syncthreads(); }
#endif
