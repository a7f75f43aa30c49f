"""The economy inside WarpDrive: its environment, managers, sampler and reset, on CPU threads or an NVIDIA GPU."""
