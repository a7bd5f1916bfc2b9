"""What a run holds in memory, by arithmetic alone: no weights are read, nothing is run."""
