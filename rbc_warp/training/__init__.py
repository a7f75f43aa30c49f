"""Policies and how they learn, orchestrated by WarpDrive's trainer."""
