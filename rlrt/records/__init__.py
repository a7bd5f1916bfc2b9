"""What a run leaves behind: its folder, identity, checkpoints, records and MLflow."""
