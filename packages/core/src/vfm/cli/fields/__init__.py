"""The fields of a kind of stage, for `vfm stages KIND`."""
