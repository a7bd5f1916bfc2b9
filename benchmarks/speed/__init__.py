"""Speed, side by side with TRL and transformers on the same work: ``make bench`` and ``make bench-quick``."""
