"""One run from its settings to its summary, and every way it can end."""
