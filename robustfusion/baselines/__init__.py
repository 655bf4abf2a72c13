"""Every compared method, one file each, under the head contract of ``DRFHead``.

``output = head(features, available)`` has at least ``.logits``, ``.fused`` and ``.aux_loss``;
``head.loss(output, labels)`` is the whole training objective. As in ``DRFHead``, an available row
(or token) that holds NaN, infinity or a value beyond 1e9 counts as missing.
"""

from robustfusion.baselines.clmlf import CLMLFHead, CLMLFOutput
from robustfusion.baselines.concatenation import ConcatenationHead
from robustfusion.baselines.ecml import ECMLHead
from robustfusion.baselines.embracenet import EmbraceNetHead
from robustfusion.baselines.hsan import HSANHead
from robustfusion.baselines.imputation import ImputationHead, ImputationOutput
from robustfusion.baselines.late_mean import LateMeanHead, LateMeanOutput
from robustfusion.baselines.majority import MajorityHead
from robustfusion.baselines.mgnns import MGNNSHead
from robustfusion.baselines.missing_prompts import MissingPromptsHead
from robustfusion.baselines.mmin import MMINHead, MMINOutput
from robustfusion.baselines.mvan import MVANHead
from robustfusion.baselines.mvcn import MVCNHead, MVCNOutput
from robustfusion.baselines.pdf import PDFHead, PDFOutput
from robustfusion.baselines.qmf import QMFHead, QMFOutput
from robustfusion.baselines.tmc import EvidentialOutput, TMCHead
from robustfusion.baselines.unimodal import UnimodalHead
from robustfusion.output import HeadOutput

__all__ = [
    "CLMLFHead",
    "CLMLFOutput",
    "ConcatenationHead",
    "ECMLHead",
    "EmbraceNetHead",
    "EvidentialOutput",
    "HSANHead",
    "HeadOutput",
    "ImputationHead",
    "ImputationOutput",
    "LateMeanHead",
    "LateMeanOutput",
    "MGNNSHead",
    "MMINHead",
    "MMINOutput",
    "MVANHead",
    "MVCNHead",
    "MVCNOutput",
    "MajorityHead",
    "MissingPromptsHead",
    "PDFHead",
    "PDFOutput",
    "QMFHead",
    "QMFOutput",
    "TMCHead",
    "UnimodalHead",
]
