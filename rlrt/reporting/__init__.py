"""What a sweep says: its jobs, tables, figures and one page. ``python -m rlrt.report`` is the command."""
