"""Persistent CUDA kernels for one layer and direction, compiled at first use."""
