"""Any graph, on machines whose nodes take turns: a machine is held by what it computes and what crosses its border."""
