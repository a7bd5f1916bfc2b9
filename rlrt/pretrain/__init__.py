"""How the embedded model was made: ``python -m rlrt.pretrain`` writes it anew, the same to the bit on the same machine."""
