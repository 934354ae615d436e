"""Attacks: their grid, one attack of it, presets, and the guards they run against."""
