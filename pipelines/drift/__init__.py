"""Drift: how unlike new documents are to those before, and who was told."""
