"""The dataset: an append-only commit log over Arrow shards (DESIGN §4)."""
