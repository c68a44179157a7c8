"""Training: from committed shards to a registered model version. Only ``app`` knows Ray; the rest is plain PyTorch."""
