"""Sweeps: which jobs a sweep has, their state, the launchers that run them, and the driver's loop.

State is stored in the jobs' folders, never only in the driver's memory, so a new driver can replace one that died.
"""
