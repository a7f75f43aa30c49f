"""Files: one run's folder, its files and metrics; and many runs, as a sweep."""
