"""Checkpoint folders of safetensors files: what is stored, which parameter it belongs to, and its exact values."""

from partitioner.frontends.checkpoint.folder import Checkpoint, open_checkpoint
from partitioner.frontends.checkpoint.match import Match, match_checkpoint
from partitioner.frontends.checkpoint.reading import load_weights
from partitioner.frontends.checkpoint.stored import as_stored, most_stored_dtype

__all__ = [
    "Checkpoint",
    "Match",
    "as_stored",
    "load_weights",
    "match_checkpoint",
    "most_stored_dtype",
    "open_checkpoint",
]
