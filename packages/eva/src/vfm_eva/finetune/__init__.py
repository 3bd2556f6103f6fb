"""Fine-tuning of an encoder: `eva.finetune`."""
