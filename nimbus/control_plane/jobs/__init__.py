"""Jobs as people and programs see them: submitted, listed, followed, and why one waits."""
