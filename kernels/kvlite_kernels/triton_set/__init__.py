"""The Triton kernels. Importing a module of this package imports triton; `kvlite_kernels.choice` does so on demand."""
