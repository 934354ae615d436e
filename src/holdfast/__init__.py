"""holdfast: keep a language model's safety alignment through fine-tuning."""
