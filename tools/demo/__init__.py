"""The trainer of the built-in model, whose files are kept in `kvlite/demo`."""
