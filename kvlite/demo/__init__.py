"""The built-in model: weights and tokenizer as package data, and the script that trained them."""
