"""Room: builds, verifies and activates what a guest boots from."""
