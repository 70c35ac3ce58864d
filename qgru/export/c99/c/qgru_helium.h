/* Kernels for Helium (Cortex-M55, M85): sixteen products of 8 bits an instruction. */
