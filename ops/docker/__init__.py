"""The image, and a stack of containers around it (compose.yaml)."""
