"""Estimate of a run's memory by arithmetic."""
