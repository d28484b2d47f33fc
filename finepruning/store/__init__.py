"""Trained stages, each kept under a hash of everything that made it, in a folder that many runs share.

A stage is made once, however many runs on however many machines need it; it appears whole or not at all, and
one that is damaged later is noticed and made anew. Only reading and writing weights loads torch.
"""

from finepruning.store.code import read_sources
from finepruning.store.files import checksum, sync, write_file
from finepruning.store.lock import held
from finepruning.store.stages import LAST, WEIGHTS, Stage, Store, keep_order
from finepruning.store.weights import load_weights, save_weights

__all__ = [
    "LAST",
    "WEIGHTS",
    "Stage",
    "Store",
    "checksum",
    "held",
    "keep_order",
    "load_weights",
    "read_sources",
    "save_weights",
    "sync",
    "write_file",
]
