"""Conditions, adapters, anchors, losses and networks of DIVA's configurations."""
