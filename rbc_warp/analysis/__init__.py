"""What an economist reads off a run."""
