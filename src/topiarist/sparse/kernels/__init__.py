"""Kernels: LLVM IR that is written for one width of vectors and one size of block."""
