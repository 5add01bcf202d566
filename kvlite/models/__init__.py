"""From files to weights that run: loading, quantising, the attention seam and its gate."""
