"""The record of a run: what it took, measured while it ran, kept as a file, shown as text or a page."""
