"""The shape of a pruned network as a value, and its file."""

from topiarist.architecture.architecture import SHAPE_FILE, WEIGHTS_FILE, Architecture, load, save, write_tensors
from topiarist.architecture.encoding import DAMAGE, digest, memory_of, pack_mask, unpack_mask

__all__ = [
    "DAMAGE",
    "SHAPE_FILE",
    "WEIGHTS_FILE",
    "Architecture",
    "digest",
    "load",
    "memory_of",
    "pack_mask",
    "save",
    "unpack_mask",
    "write_tensors",
]
