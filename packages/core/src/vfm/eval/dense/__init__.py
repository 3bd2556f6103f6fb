"""Annotated images, models and drawings that dense evaluations share."""
