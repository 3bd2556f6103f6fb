"""Recognise how the files of a user's dataset are laid out."""
