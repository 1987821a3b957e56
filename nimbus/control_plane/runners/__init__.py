"""GitHub's runners: minted for machines, undone after them, held against GitHub's own list."""
