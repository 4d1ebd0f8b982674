"""FATE's view of the algorithms. Modules here import nothing heavy: FATE imports all of them on every look-up."""
