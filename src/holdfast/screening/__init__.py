"""Screening: predicted vulnerability of new examples, and what vulnerable examples share."""
