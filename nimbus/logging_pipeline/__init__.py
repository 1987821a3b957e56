"""Room: job output in, ClickHouse in the middle, pages and tails out."""
