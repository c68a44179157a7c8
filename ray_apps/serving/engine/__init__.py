"""Engines turn prompts into text. ``interface`` is the contract; ``torch_engine`` is the built-in implementation."""
