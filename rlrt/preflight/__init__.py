"""What will not work, said before anything is started: ``python -m rlrt.preflight``."""
