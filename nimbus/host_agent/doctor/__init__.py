"""What `nimbus doctor` looks at: the host, what Nimbus has stored on it, and what runs."""
