"""Views and mixtures: which documents of a dataset are read, and in which shares. Nothing is copied."""
