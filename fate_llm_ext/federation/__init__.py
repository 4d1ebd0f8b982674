"""Typed messages over FATE's federation."""
