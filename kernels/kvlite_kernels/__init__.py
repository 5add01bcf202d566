"""The kernels of kvlite, each beside its reference in plain torch."""
