"""Execution of a plan, in this process, in others, or as a job."""
