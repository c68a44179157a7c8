"""Hypothesis on shared machines: a slow first example (an import, a compilation) is no failure."""

from hypothesis import settings

settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")
