"""Heads of which we know only part of what their authors ran: see README.md beside.

They keep the head contract of ``robustfusion``, stay in the tables of ``compare.py`` and are
tested like every other head, but no import of the package brings them in.
"""

from reproductions.clmlf import CLMLFHead, CLMLFOutput
from reproductions.hsan import HSANHead
from reproductions.mgnns import MGNNSHead
from reproductions.missing_prompts import MissingPromptsHead
from reproductions.mvan import MVANHead
from reproductions.mvcn import MVCNHead, MVCNOutput

__all__ = [
    "CLMLFHead",
    "CLMLFOutput",
    "HSANHead",
    "MGNNSHead",
    "MVANHead",
    "MVCNHead",
    "MVCNOutput",
    "MissingPromptsHead",
]
