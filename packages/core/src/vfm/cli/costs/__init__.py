"""Tables of costs: `vfm plan --estimate` and `vfm plan --gpus`."""
