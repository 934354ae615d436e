"""Downstream tasks, one class per file."""
