"""GitHub as Nimbus calls it: the client, its tokens, limits and answers. Only this room talks to GitHub."""
