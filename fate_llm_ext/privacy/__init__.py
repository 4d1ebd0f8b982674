"""Differential privacy: what was released, what it cost, who allowed it."""
