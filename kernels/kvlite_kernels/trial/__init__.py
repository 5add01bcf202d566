"""The trial of kernels on the device at hand: each is held against its twin in float64, then timed beside torch."""
