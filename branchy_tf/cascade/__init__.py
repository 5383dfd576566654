"""The command `cascade`, with commands of its own."""
