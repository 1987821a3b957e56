"""Shared fixtures of the whole suite live here only when two rooms need them."""
