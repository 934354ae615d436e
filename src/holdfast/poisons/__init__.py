"""What an attacker makes of the rows: one file, one class each."""
