"""``python -m rbc_warp COMMAND``, a module for each, and what they share."""
