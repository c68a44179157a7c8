"""Files that are absent or whole, and append-only logs of numbered documents: everything durable is built on these two."""
