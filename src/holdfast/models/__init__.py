"""Language models: loading, tokens, weights, losses, answers, and what they cost."""
