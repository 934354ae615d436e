"""Judges of responses, one class per file."""
