"""Write recipes for the commands that evaluate, fine-tune and distil."""
