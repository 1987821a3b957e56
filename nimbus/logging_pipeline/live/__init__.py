"""What is being printed, to whoever follows it now."""
