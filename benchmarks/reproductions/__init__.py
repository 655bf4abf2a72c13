"""Heads that only a paper's table needs, outside of the wheel: see README.md in this folder.

They follow the head contract of ``robustfusion``, are rows of the tables of ``compare.py`` and are
tested like every other head, but no import of the package brings them in.
"""

from reproductions.clmlf import CLMLFHead
from reproductions.dymo import DyMoHead
from reproductions.hsan import HSANHead
from reproductions.late_transformer import LateTransformerHead
from reproductions.mgnns import MGNNSHead
from reproductions.missing_prompts import MissingPromptsHead
from reproductions.mmin import MMINHead
from reproductions.mvan import MVANHead
from reproductions.mvcn import MVCNHead
from reproductions.nearest_imputation import NearestImputationHead
from reproductions.nearest_vote import NearestVoteHead
from reproductions.stacking import StackingHead

__all__ = [
    "CLMLFHead",
    "DyMoHead",
    "HSANHead",
    "LateTransformerHead",
    "MGNNSHead",
    "MMINHead",
    "MVANHead",
    "MVCNHead",
    "MissingPromptsHead",
    "NearestImputationHead",
    "NearestVoteHead",
    "StackingHead",
]
