"""Composed YAML to checked settings; every refusal of what was typed."""
