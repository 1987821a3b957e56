"""Nimbus: self-hosted CI, one throw-away microVM per job."""

__version__ = "0.1.0"
