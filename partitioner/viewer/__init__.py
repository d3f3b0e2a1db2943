"""The report page: one HTML file that shows a plan, without a server and without a network."""
