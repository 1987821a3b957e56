"""Machine requests and their leases: who is woken, who is granted what, how a lease ends."""
