"""Floor 3: stores of bytes by name, shared by the rooms."""
