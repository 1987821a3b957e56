"""The table of job output: opened, brought up to date, written and read."""
