"""Serving: an OpenAI-compatible gateway, a pure router, and one engine per model version."""
