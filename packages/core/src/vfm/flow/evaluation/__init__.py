"""`vfm eval`: from models, data sets and tasks by name to the recipe that a user could have written."""
