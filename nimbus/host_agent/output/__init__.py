"""A VM's output between its guest and the logging pipeline: masked, spooled, numbered, shipped. logs.py is its face."""
