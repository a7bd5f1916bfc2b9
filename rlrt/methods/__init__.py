"""Methods: a choice in four slots, each a small class on tensors. This package imports torch alone."""
