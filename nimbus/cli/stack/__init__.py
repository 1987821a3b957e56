"""The stack of `nimbus up`: embedded servers and rooms, each its own process under one supervisor."""
