"""Floor 1: sans-IO protocols, bytes to values and back."""
