"""Where numbers are kept besides the terminal."""
