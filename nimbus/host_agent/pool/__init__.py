"""Machines made ahead of their jobs: a VMM that waits for its memory (prespawned), or a paused clone (warm)."""
