"""Masked pre-training (`eva.pretrain`, `eva.clip` and `eval.masked_patches`)."""
