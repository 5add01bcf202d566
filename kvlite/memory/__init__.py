"""Bytes before a model is loaded: the shape of a model, budgets, plans and predictions. Loads no torch."""
