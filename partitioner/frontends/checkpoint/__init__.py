"""Checkpoints of safetensors: which tensors a folder holds, what they store, and how they become a model's weights."""

from partitioner.frontends.checkpoint.folder import Checkpoint, open_checkpoint
from partitioner.frontends.checkpoint.match import Match, match_checkpoint
from partitioner.frontends.checkpoint.stored import as_stored, most_stored_dtype
from partitioner.frontends.checkpoint.weights import CheckpointWeights, open_checkpoint_weights

__all__ = [
    "Checkpoint",
    "CheckpointWeights",
    "Match",
    "as_stored",
    "match_checkpoint",
    "most_stored_dtype",
    "open_checkpoint",
    "open_checkpoint_weights",
]
