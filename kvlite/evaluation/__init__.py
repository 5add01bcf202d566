"""The cost of a KV budget: recall by distance, divergence from the full cache, perplexity; policies side by side."""
