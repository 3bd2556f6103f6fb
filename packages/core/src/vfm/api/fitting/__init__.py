"""Train any module by a loss on any data: `vfm.fit`."""
