"""The ruler: how every model is measured, whoever trained it."""
