"""The need of each KV head for slots, measured once per model: read, kept, drawn. Loads no torch."""
