"""Federated language-model algorithms as FATE 2.2 components."""

__version__ = "0.1.0"
