"""Training-free open-vocabulary segmentation with rules of the last block, words, windows and thresholds."""
