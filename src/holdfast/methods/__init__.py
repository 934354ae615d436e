"""Alignment methods: one file, one trainer class each."""
