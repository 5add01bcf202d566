"""Triton kernels compiled without a GPU: what the product launches, and what is in the machine code."""
