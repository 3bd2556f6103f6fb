"""Class names and prompts of zero-shot classification."""
