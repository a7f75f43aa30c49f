"""The model without a framework: agent types, parameters, the reference in NumPy, and the curriculum."""
