"""Studies of early exit, one command each; see README.md."""
