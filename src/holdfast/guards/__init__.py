"""Guards: what a provider does while or after a customer fine-tunes, one class per file."""
