"""What a path holds: its format, contents and problems, and the commands that use it."""
