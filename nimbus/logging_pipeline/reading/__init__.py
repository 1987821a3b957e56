"""What was stored, as readers ask for it: pages, search, downloads, counts."""
