"""The distance of a run from an equilibrium: deviations, best responses and exact plans."""
