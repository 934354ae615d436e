"""Analyses of a run: one file, one class each."""
