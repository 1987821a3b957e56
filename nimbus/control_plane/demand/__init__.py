"""How we learn what GitHub wants done, by webhooks, redelivery and polls, and which machines are asked for it."""
