"""Fitted quality models: perplexity, informativeness, and a classifier of good and bad examples."""
