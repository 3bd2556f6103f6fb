"""The standard streams of the command, and the words that Tab completes."""
