"""Nodes that may be taken away at short notice."""
