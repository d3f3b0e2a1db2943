"""What a block costs on a machine, from first principles: cycles on a mesh of tiles, seconds on devices."""
