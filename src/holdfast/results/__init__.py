"""What stages leave on disk: artifacts, run directories, and comparisons of them."""
