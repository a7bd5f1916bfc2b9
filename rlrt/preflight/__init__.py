"""``python -m rlrt.preflight`` reports what of a run will not work before anything is started."""
