"""The kernels of kvlite, each beside its plain torch twin."""
