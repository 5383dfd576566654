"""Tools that build the zoo; they run from a checkout and are not in the package."""
