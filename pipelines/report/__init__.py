"""The report on a dataset version: one HTML page that needs nothing else, readable on a phone and safe whatever the documents say."""
