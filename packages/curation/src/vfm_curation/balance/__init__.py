"""Balance the long tail: thresholds, subsets and the data card."""
