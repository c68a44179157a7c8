"""``headrace demo``: the whole loop on one machine in a few minutes, told as it happens."""
