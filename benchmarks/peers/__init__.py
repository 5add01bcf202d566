"""Engines that generate from one set of random weights, side by side in one run."""
