"""``python -m rbc_warp COMMAND`` and what the launchers share."""
