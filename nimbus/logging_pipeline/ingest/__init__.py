"""From a machine's request to stored rows: each exactly once."""
