"""The ground floor: nouns as frozen values, their transition tables and errors. No I/O, no imports from above."""
