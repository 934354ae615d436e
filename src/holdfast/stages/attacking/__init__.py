"""Attacks: grids, presets, guards, and the job of a single attack."""
