"""The rules' kernels: one document at a time in scratch arrays that stay in the cache, over a whole Arrow batch without Python."""
