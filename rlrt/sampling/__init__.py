"""A step's prompts to graded rollouts, now or ahead of the update."""
