"""One file per metric. Each takes what was read from the pictures (tensors) and gives values with 95% intervals."""
