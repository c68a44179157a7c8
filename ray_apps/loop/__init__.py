"""The loop: one process that keeps the others alive and turns new documents into new models."""
