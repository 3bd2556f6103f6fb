"""`vfm eval`: write the recipe of an evaluation from the names of models, datasets and tasks."""
