"""Parts of DIVA's configurations: conditions, adapters, anchors, losses and networks."""
