"""Our own Firecracker and jailer, for hosts that have none, and the stories that hold them to the real ones."""
