"""Listeners that show, write or send the events of a run."""
