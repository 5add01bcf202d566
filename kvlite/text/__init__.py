"""Everything between text and ids: chat templates, incremental detokenising, stop strings, thinking."""
