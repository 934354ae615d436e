"""Fine-tuning: the training loop, proxy attacks, forgetting, and attack directions."""
