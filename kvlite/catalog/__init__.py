"""Models by name: aliases, the Hub and its cache, configs and weight headers. Loads no torch."""
