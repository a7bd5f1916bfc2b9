"""Several processes as one run: who takes which share, what is told to whom, and what happens when one of them is lost."""
