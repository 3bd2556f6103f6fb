"""From a YAML file to artifacts on disk: recipe, plan, store, run, launch, listeners, report."""
