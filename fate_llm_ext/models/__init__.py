"""Loading base models, tokenizers and adapters."""
