"""Studies of early exit, one command each; README.md lists them."""
