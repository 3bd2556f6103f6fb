"""The Triton kernels, one idea a file. These files import triton alone, so that they compile without a GPU."""
