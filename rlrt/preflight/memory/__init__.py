"""Memory of a run by arithmetic."""
