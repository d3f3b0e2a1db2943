"""Checkpoint folders of safetensors files: what is stored, which parameter it belongs to, and its exact values."""

from partitioner.frontends.checkpoint.folder import Checkpoint, holds_weights, open_checkpoint
from partitioner.frontends.checkpoint.match import Match, match_checkpoint
from partitioner.frontends.checkpoint.stored import as_stored, most_stored_dtype
from partitioner.frontends.checkpoint.weights import CheckpointWeights, open_checkpoint_weights

__all__ = [
    "Checkpoint",
    "CheckpointWeights",
    "Match",
    "as_stored",
    "holds_weights",
    "match_checkpoint",
    "most_stored_dtype",
    "open_checkpoint",
    "open_checkpoint_weights",
]
