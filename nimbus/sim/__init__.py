"""Room: the bundled fake GitHub, for rehearsals without the real one."""
