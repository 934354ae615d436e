"""Ways an attacker prepares the harmful rows, one class per file."""
