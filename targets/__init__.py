"""The machines, and what they do with a plan."""
