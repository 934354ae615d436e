"""Fine-tuning: the loop, proxy attacks, what is forgotten, and in which direction."""
