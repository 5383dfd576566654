"""Networks and data sets other than images, for the commands of branchy_tf."""
