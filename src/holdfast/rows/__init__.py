"""Training and test rows: reading them, where they come from, and their text."""
