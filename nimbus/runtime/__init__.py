"""Floor 2: Trio plumbing without business words."""
