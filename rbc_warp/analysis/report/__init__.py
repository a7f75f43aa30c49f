"""The report of a run or an experiment: one HTML page of interactive figures."""
