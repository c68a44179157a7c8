"""Processes that live on Ray: training, serving, rollout, and the loop that joins them."""
