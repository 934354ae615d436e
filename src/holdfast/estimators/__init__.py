"""Estimators of vulnerability, one class per file."""
