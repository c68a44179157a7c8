"""Model versions: their shapes, their registry, their cards, their lineage."""
