"""The keys that sign agents' and machines' tokens: which there are, how they change, what is signed with them."""
