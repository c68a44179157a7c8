"""Semantic duplicates: documents that say the same in other words, found by their embeddings. Optional: ``pip install 'headrace[semantic]'``."""
