"""Seconds of a step by arithmetic, and the hours of a job and a sweep."""
