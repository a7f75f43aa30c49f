"""What is kept: one run's folder, its files and metrics; and many runs, as a sweep."""
