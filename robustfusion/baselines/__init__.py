"""Methods to compare with, all built on ``BaselineHead`` and used like ``DRFHead``.

``output = head(features, available)`` is a ``HeadOutput``: ``.logits``, ``.fused``, ``.aux_loss``,
and in ``.extras`` what the head adds. ``head.loss(output, labels)`` is the whole training
objective. Heads that only a paper's table needs are in ``benchmarks/reproductions``.
"""

from robustfusion.baselines.concatenation import ConcatenationHead
from robustfusion.baselines.embracenet import EmbraceNetHead
from robustfusion.baselines.evidential import ECMLHead, TMCHead
from robustfusion.baselines.floors import MajorityHead, UnimodalHead
from robustfusion.baselines.head import BaselineHead
from robustfusion.baselines.imputation import ImputationHead
from robustfusion.baselines.late import LateMeanHead
from robustfusion.baselines.pdf import PDFHead
from robustfusion.baselines.qmf import QMFHead

__all__ = [
    "BaselineHead",
    "ConcatenationHead",
    "ECMLHead",
    "EmbraceNetHead",
    "ImputationHead",
    "LateMeanHead",
    "MajorityHead",
    "PDFHead",
    "QMFHead",
    "TMCHead",
    "UnimodalHead",
]
