"""What a pass through a placed model costs, in seconds by cause."""
