"""FedCoT (arXiv 2406.12403): rationales of an LLM for prompts that it does not see."""
