"""Output for users: terminal, tables, figures and pages."""
