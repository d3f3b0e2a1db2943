"""From a graph to a model: canonical form, what attention remembers, and blocks."""
