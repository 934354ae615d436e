"""Language models: loading, tokens, weights, losses, generation and cost."""
