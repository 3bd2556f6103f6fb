"""One module a task: from loaded models and a data set to verdicts, predictions and panels. They use torch."""
