"""Training-free open-vocabulary segmentation: rules of the last block, words, windows, thresholds, scores."""
