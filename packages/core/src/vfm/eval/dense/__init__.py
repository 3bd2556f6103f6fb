"""What dense evaluations share: annotated images, models and drawings."""
