"""FDKT: DP synthetic texts, augmented by an LLM, for better local models."""
