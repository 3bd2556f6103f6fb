"""The plan of a run and the store that it is compared with."""
