"""The CPU kernels: the integer GRU in C++, exact and vectorised."""
