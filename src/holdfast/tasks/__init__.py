"""Downstream tasks: one file, one class each."""
