"""Estimators of vulnerability: one file, one class each."""
