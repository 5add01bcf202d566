"""From names to files: aliases, the Hub and its cache, headers and configs. Loads no torch."""
