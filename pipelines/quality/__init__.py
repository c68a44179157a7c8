"""Fitted models of quality: how a document reads (perplexity), what it tells (informativeness), and which examples it is like (classifier)."""
