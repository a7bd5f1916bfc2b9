"""What a person sees: terminal, tables, figures, pages."""
