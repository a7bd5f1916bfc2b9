"""Samplers of rollouts, behind one interface (``rlrt.engines.engine.Engine``)."""
