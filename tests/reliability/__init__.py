"""What the normal suite leaves out: thousands of faults, kills and damaged files. ``make reliability``."""
