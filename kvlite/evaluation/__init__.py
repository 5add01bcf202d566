"""What a KV budget costs: recall by distance, divergence from the full cache, perplexity; policies side by side."""
