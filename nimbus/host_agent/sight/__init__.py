"""What is seen of this host's VMs by whoever only looks: never touches, locks or ends anything."""
