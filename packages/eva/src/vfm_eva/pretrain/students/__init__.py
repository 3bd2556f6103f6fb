"""The students of `eva.pretrain`: vision transformers whose patches are masked, and other networks."""
