"""What a run writes: its folder, identity, checkpoints, records and MLflow run."""
