"""Sweeps that survive: which jobs there are, what state they are in, who runs them, and the loop between.

State lives in the jobs' folders, never in a driver's memory: a driver may die and another one goes on.
"""
