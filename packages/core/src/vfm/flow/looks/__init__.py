"""Inspecting a path: its format, contents and problems, and the commands that use it."""
