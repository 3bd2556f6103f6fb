"""Students of `eva.pretrain`. They are vision transformers whose patches are masked, and other networks."""
