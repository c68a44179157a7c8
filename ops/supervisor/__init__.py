"""What ``headrace up`` keeps running, and how: a Ray head, the services in order, restarts with pauses."""
