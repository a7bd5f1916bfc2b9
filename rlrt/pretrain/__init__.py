"""Training of the embedded model: ``python -m rlrt.pretrain`` reproduces it, to the bit on the same machine."""
