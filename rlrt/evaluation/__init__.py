"""A checkpoint afterwards: suites, intervals, and what training did to the distribution."""
