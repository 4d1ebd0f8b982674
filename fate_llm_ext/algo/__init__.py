"""The algorithms: one folder each, the federated round loop in `base`."""
