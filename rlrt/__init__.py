"""Experiments on token-level credit in RLVR: RLRT, its baselines, sweeps and honest comparison."""
