"""From a recipe file to artifacts on disk: recipe, plan, store, run, execution, listeners, report."""
