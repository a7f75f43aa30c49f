"""How far a run is from an equilibrium: deviations, best responses and exact plans."""
