"""The built-in model: its weights, tokenizer, template and card as package data, without code."""
