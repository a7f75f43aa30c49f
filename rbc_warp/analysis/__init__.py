"""Analysis of runs, for economists."""
