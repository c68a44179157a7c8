"""Taking documents back: which ones, from where on, and the spans of them that nobody reads any more."""
