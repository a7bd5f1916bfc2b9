"""The model: weights, adapters, prompts, and the one forward path."""
