"""Tables of `vfm plan --estimate` and `vfm plan --gpus`."""
