"""What the zoo is made with: run from a checkout, not part of the package."""
