"""Drift: how much new documents differ from those before, and the alert about it."""
