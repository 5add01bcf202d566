"""Chat with and batch-generate from Hugging Face models inside a fixed KV-cache byte budget."""
