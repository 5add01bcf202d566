"""Everything between text and ids: chat templates, streaming decoding, stop strings. Loads no torch."""
