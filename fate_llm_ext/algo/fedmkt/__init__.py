"""FedMKT: federated mutual knowledge transfer between an LLM and SLMs (arXiv 2406.02224)."""
