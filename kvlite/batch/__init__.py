"""Many prompts from a file: input lines in, one record per line out, resumable at any moment."""
