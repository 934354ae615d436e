"""Intervals, survival times, differences, agreement and power; knows nothing of models."""
