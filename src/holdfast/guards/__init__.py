"""What a provider does while, or after, a customer fine-tunes: one file, one class each."""
