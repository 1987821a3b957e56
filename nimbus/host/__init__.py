"""Floor 1: Linux nouns as synchronous, idempotent pairs."""
