"""Any graph on machines whose nodes take turns: the load of a machine is what it computes, sends and takes."""
