"""Choice between the plain form of an op and its kernel."""
