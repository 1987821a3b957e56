"""The roof: what a person types. Composes rooms; no business rule lives here."""
