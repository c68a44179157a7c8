"""Tokenizers: trained or imported, kept as Hugging Face files, and measured; a fast engine encodes with them."""
