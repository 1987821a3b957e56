"""Hosts: what their agents tell, and how an operator steers them."""
