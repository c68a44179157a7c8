"""``headrace demo``: the whole loop on one machine in a few minutes, with a line for each step."""
