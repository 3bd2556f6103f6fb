"""Recipes written from a command: evaluation, fine-tuning, distillation."""
