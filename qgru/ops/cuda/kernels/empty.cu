// Nothing: to ask the driver how many clusters of a size run at once, which differs from chip to chip.
extern "C" __global__ void empty() {}
