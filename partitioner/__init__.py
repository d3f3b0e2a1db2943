"""The verbs that decide: from a model and a machine to a checked plan."""
