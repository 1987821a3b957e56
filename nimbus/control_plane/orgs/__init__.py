"""Orgs: their limits, their labels, and what GitHub refuses them."""
