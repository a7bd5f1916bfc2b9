"""The acceptance test of the first card, and throughput on it: ``python -m benchmarks.gpu``."""
