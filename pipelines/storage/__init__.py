"""Files that are absent or whole, and append-only logs of numbered documents: the two primitives under everything durable."""
