"""Judges of responses: one file, one class each."""
