"""Alignment methods, one trainer class per file."""
