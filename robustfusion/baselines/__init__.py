"""Every compared method, each on the one ``BaselineHead``, under the head contract of ``DRFHead``.

``output = head(features, available)`` has at least ``.logits``, ``.fused`` and ``.aux_loss``;
``head.loss(output, labels)`` is the whole training objective. Heads known in part only, from
secondary sources, are in ``benchmarks/reproductions``.
"""

from robustfusion.baselines.concatenation import ConcatenationHead
from robustfusion.baselines.dymo import DyMoHead, DyMoOutput
from robustfusion.baselines.embracenet import EmbraceNetHead
from robustfusion.baselines.evidential import ECMLHead, EvidentialOutput, TMCHead
from robustfusion.baselines.floors import MajorityHead, UnimodalHead
from robustfusion.baselines.head import BaselineHead
from robustfusion.baselines.imputation import ImputationHead, ImputationOutput
from robustfusion.baselines.late import LateMeanHead, LateMeanOutput, StackingHead
from robustfusion.baselines.mmin import MMINHead, MMINOutput
from robustfusion.baselines.nearest_vote import NearestVoteHead, NearestVoteOutput
from robustfusion.baselines.pdf import PDFHead, PDFOutput
from robustfusion.baselines.qmf import QMFHead, QMFOutput
from robustfusion.baselines.transformer import LateTransformerHead

__all__ = [
    "BaselineHead",
    "ConcatenationHead",
    "DyMoHead",
    "DyMoOutput",
    "ECMLHead",
    "EmbraceNetHead",
    "EvidentialOutput",
    "ImputationHead",
    "ImputationOutput",
    "LateMeanHead",
    "LateMeanOutput",
    "LateTransformerHead",
    "MMINHead",
    "MMINOutput",
    "MajorityHead",
    "NearestVoteHead",
    "NearestVoteOutput",
    "PDFHead",
    "PDFOutput",
    "QMFHead",
    "QMFOutput",
    "StackingHead",
    "TMCHead",
    "UnimodalHead",
]
