"""Measurements with bounds: each `make bench-NAME` is a module here (frame.py holds what they share)."""
