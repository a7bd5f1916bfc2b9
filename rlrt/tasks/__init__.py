"""Prompts and verifiers, behind one interface (``rlrt.tasks.base.Task``)."""
