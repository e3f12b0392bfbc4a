"""Slow, plain twins that only the tests import."""
