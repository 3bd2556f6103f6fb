"""Write, verify and clean the records of runs."""
