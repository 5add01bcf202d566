"""Bytes: what a model's layers need, what a budget holds, what a run is predicted to take and took. Loads no torch."""
