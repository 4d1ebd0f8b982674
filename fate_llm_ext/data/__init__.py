"""Rows, templates, examples and batches."""
