"""Templates of booted machines: which one a boot may use, how one is made, and its memory as clones map it."""
