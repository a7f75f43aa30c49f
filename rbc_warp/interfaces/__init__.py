"""The economy behind interfaces that people already use: tensors, PettingZoo, Gymnasium."""
