"""Which rectangle of tiles each block of a wafer gets."""
