"""The embedded ClickHouse engine: a child process that speaks ClickHouse's own HTTP protocol."""
