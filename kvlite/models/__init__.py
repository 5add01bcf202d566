"""From files to weights that run: loading, quantising, the attention interface and the checks after loading."""
