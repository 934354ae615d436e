"""Interruptions, progress and failures of a running program."""
