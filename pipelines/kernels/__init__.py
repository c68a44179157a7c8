"""The compiled kernels, made ready before they are needed."""
