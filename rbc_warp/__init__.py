"""rbc_warp: real-business-cycle economies with many strategic agents, on WarpDrive."""
