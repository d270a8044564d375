"""Linear attention on non-negative features."""
