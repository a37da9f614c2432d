"""Stands in for liger-kernel where Triton cannot run: its names (as of 0.8.5), and torch instead of kernels."""
