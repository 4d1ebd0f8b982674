"""DP-KD: distillation from a differentially private teacher through synthetic text (arXiv 2403.00932)."""
