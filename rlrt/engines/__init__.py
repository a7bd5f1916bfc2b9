"""Samplers of rollouts, behind one interface (``rlrt.rollouts.Engine``)."""
