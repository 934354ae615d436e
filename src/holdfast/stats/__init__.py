"""Intervals, survival times, differences, agreement and power; independent of models and runs."""
