"""Triton kernels, one file an op. Imported only where Triton is there and a kernel is to run or to be compiled."""
