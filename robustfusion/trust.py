"""Learn from damaged samples how much each modality can be trusted."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn

from robustfusion._modules import arguments_of
from robustfusion._state import keep_float32
from robustfusion._trust_fit import VETO_BELOW, HeldOut, Problem, TrustFit
from robustfusion._validation import check_dims, check_features, check_labels, check_mask
from robustfusion.candidates import Candidates
from robustfusion.functional import conformal_p_value, masked_softmax

_REFERENCES = 2048  # number of intact samples whose evidence is stored; p-values need no more


class LearnedTrust(nn.Module):
    r"""Weight modalities by the harm that damage does to the prediction.

    Unusual is not harmful: noise that any score notices may cost nothing, and a black image, which
    looks like nothing special to a small encoder, may cost everything. The class labels of
    held-out samples, once intact and once damaged by several kinds, say which is which. One linear
    function per modality turns standardized features and log-quality into evidence

    .. math:: g_m = a_m^\top z_m + \kappa_m \min(q_m, \tau) + b_m, \qquad
              w_S = \operatorname{softmax}_S \Big( c_S + \sum_{m \in S} g_m \Big)

    for trusting the modality; :math:`w_S` are the weights of the candidates, each of which trusts
    a subset :math:`S` of the modalities. The fit minimizes the negative log-likelihood of the
    fused prediction. No label says what is damaged. Before it, :math:`a = 0` and the evidence is
    the log-quality minus a prior.

    Args:
        dims: Feature width of each modality.
        subsets: The modalities that each candidate trusts; by default those of
            :class:`~robustfusion.candidates.Candidates`. For two models with one modality each:
            ``[("image",), ("text",)]``.
        log_prior: Initial log-quality below which a modality is not trusted.

    Attributes:
        direction: (D, M), :math:`a_m` of modality m in column m, with the features of all
            modalities in a row of width D.
        bias: (M,), :math:`b`.
        veto: (M,), :math:`\kappa`.
        veto_below: (), :math:`\tau`.
        offset: (K,), :math:`c`.
        late_share: (), the share of late fusion in each candidate of a head that mixes the two.

    Shape:
        - ``features[name]``: (B, D_m), standardized; ``log_quality``: (B, M)
        - Output: (B, M), the evidence for each modality

    Example:
        >>> import torch
        >>> from robustfusion import LearnedTrust
        >>> image, text = torch.randn(300, 8), torch.randn(300, 4)
        >>> logits = torch.randn(300, 2, 3)  # of a model on images and a model on texts
        >>> trust = LearnedTrust({"image": 8, "text": 4}, subsets=[("image",), ("text",)])
        >>> fit = trust.fit({"image": image, "text": text}, logits, torch.randint(3, (300,)))
        >>> trust.weights(trust({"image": image, "text": text})).shape
        torch.Size([300, 2])
    """

    direction: Tensor
    bias: Tensor
    veto: Tensor
    veto_below: Tensor
    offset: Tensor
    late_share: Tensor
    references: Tensor
    reference_count: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        subsets: Iterable[tuple[str, ...]] | None = None,
        *,
        log_prior: float = math.log(0.1),
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims)
        self.log_prior = log_prior
        self.candidates = Candidates(self.dims, subsets)
        modalities = len(self.dims)
        self.register_buffer("direction", torch.zeros(sum(self.dims.values()), modalities))
        self.register_buffer("bias", torch.full((modalities,), -log_prior))
        self.register_buffer("veto", torch.ones(modalities))
        self.register_buffer("veto_below", torch.zeros(()))
        self.register_buffer("offset", torch.zeros(len(self.candidates)))
        self.register_buffer("late_share", torch.tensor(0.5))
        # Evidence of intact samples that the fit did not see.
        self.register_buffer("references", torch.zeros(modalities, _REFERENCES))
        self.register_buffer("reference_count", torch.zeros(modalities, dtype=torch.long))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        change = keep_float32(fn, *self.buffers(recurse=False))
        return cast("Self", super()._apply(change, recurse))  # type: ignore[no-untyped-call]

    def reset(self) -> None:
        """Forget what was learned; the evidence is the log-quality minus the prior again."""
        self.direction.zero_()
        self.bias.fill_(-self.log_prior)
        self.veto.fill_(1)
        self.veto_below.zero_()
        self.offset.zero_()
        self.late_share.fill_(0.5)
        self.reference_count.zero_()

    def forward(self, features: Mapping[str, Tensor], log_quality: Tensor | None = None) -> Tensor:
        """Return the evidence for trusting each modality, (B, M)."""
        check_features(features, self.dims)
        with torch.autocast(self.direction.device.type, enabled=False):
            rows = torch.cat([features[name] for name in self.dims], dim=1)
            evidence = torch.addmm(self.bias, rows.to(self.direction.dtype), self.direction)
            if log_quality is None:
                return evidence
            return torch.addcmul(evidence, torch.minimum(log_quality, self.veto_below), self.veto)

    def weights(
        self,
        evidence: Tensor,
        available: Tensor | None = None,
    ) -> Tensor:
        """Return the weight of each candidate, (B, M) -> (B, K).

        Args:
            evidence: (B, M), as ``forward`` returns it.
            available: (B, M) bool, True where a modality is present; ``None`` means everywhere.
        """
        if available is None:
            available = torch.ones_like(evidence, dtype=torch.bool)
        trusted, usable = self.candidates.restrict(available)
        return masked_softmax(self.log_weights(evidence, trusted), usable)

    def log_weights(self, evidence: Tensor, trusted: Tensor) -> Tensor:
        """Return the unnormalized log-weight of each candidate, (B, M), (B, K, M) -> (B, K)."""
        return evidence[:, None].where(trusted, 0.0).sum(-1) + self.offset

    def p_values(self, evidence: Tensor) -> Tensor:
        """Return the share of intact samples with at most this evidence, (B, M) -> (B, M).

        A small value is an alarm: an intact modality is rarely trusted so little. NaN where no
        reference is known.
        """
        index = torch.arange(_REFERENCES, device=evidence.device)
        columns = [
            conformal_p_value(-value, -reference, index < count).where(count > 0, torch.nan)
            for value, reference, count in zip(
                evidence.unbind(1), self.references, self.reference_count, strict=True
            )
        ]
        return torch.stack(columns, dim=1)

    @torch.no_grad()
    def fit(
        self,
        features: Mapping[str, Tensor],
        logits: Tensor,
        target: Tensor,
        *,
        available: Tensor | None = None,
        kind: Tensor | None = None,
        group: Tensor | None = None,
    ) -> TrustFit:
        """Learn from held-out samples, some of them damaged.

        Args:
            features: (N, D_m) for each modality, standardized.
            logits: (N, K, C), the prediction of each candidate.
            target: (N,) long, the class of each sample.
            available: (N, M) bool; ``None`` means that every modality is present everywhere.
            kind: (N,) long, 0 for intact samples, else the number of the kind of damage;
                ``None`` treats all samples alike.
            group: (N,) long, equal for all copies of one sample, which cross-validation keeps
                together; ``None`` means that all samples differ.

        Returns:
            The chosen penalty and what the fit gained.
        """
        count = check_features(features, self.dims)
        check_labels(target, count, logits.shape[-1])
        if logits.shape[:2] != (count, len(self.candidates)):
            raise ValueError(
                f"logits must have shape ({count}, {len(self.candidates)}, C), one prediction per "
                f"candidate, got {tuple(logits.shape)}"
            )
        shape = (count, len(self.dims))
        zeros = torch.zeros(shape, device=logits.device)
        if available is None:
            available = torch.ones(shape, dtype=torch.bool, device=logits.device)
        check_mask(available, shape, "available")
        index = torch.arange(count, device=logits.device)
        return self.fit_held_out(
            HeldOut(
                dict(features),
                available,
                log_quality=zeros,
                agreement=zeros,
                logits=logits[:, :, None],
                target=target,
                kind=torch.zeros_like(index) if kind is None else kind,
                group=index if group is None else group,
            )
        )

    @torch.no_grad()
    def fit_held_out(self, samples: HeldOut) -> TrustFit:
        """Learn from samples as a head sees them; the functions of the folds are averaged.

        Each fold is fitted without a part of the samples and without a part of the kinds of
        damage, so that the penalty is chosen for samples and kinds that the fit did not see. The
        references of p-values are the intact samples of each fold, by the function of that fold.
        """
        self.reset()
        problem = Problem(samples, self.candidates, self.log_prior)
        fit, fitted = problem.cross_fit()
        if fit.penalty < math.inf:
            numbers = problem.numbers(torch.stack(fitted).mean(0))
            for index, (rows, own) in enumerate(
                zip(self._blocks(), numbers.directions, strict=True)
            ):
                self.direction[rows, index] = own
            self.bias.copy_(numbers.bias)
            self.veto.copy_(numbers.veto)
            self.veto_below.fill_(VETO_BELOW)
            self.offset.copy_(numbers.offset)
            self.late_share.copy_(numbers.late_share[0])
        evidence = problem.left_out_evidence(fitted)
        for index in range(len(self.dims)):
            values = evidence[(samples.kind == 0) & samples.available[:, index], index]
            chosen = torch.linspace(0, len(values) - 1, min(len(values), _REFERENCES))
            values = values[chosen.round().long()]
            self.references[index, : len(values)] = values
            self.reference_count[index] = len(values)
        return fit

    def _blocks(self) -> list[slice]:
        """Return the rows of ``direction`` that belong to each modality."""
        ends = itertools.accumulate(self.dims.values())
        return [slice(end - dim, end) for end, dim in zip(ends, self.dims.values(), strict=True)]

    extra_repr = arguments_of
