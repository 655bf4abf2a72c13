"""Learn from damaged samples how much each modality can be trusted."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn

from robustfusion._modules import arguments_of
from robustfusion._state import keep_float32
from robustfusion._trust_fit import LOWEST_LOG_QUALITY, HeldOut, TrustFit, TrustProblem, fit_harm
from robustfusion._validation import check_dims, check_features, check_mask
from robustfusion.candidates import Candidates
from robustfusion.functional import conformal_p_value, masked_softmax
from robustfusion.tasks import Task, check_target

_REFERENCES = 2048  # number of intact samples whose harm is stored; p-values need no finer steps


class LearnedTrust(nn.Module):
    r"""Weight modalities by the harm that damage does to the prediction.

    Unusual is not harmful: noise that any score notices may cost nothing, and a black image, which
    looks like nothing special to a small encoder, may cost everything. Held-out samples, once
    intact and once damaged by several kinds, show which is which. Two linear functions of the
    standardized features :math:`z_m` and the log-quality :math:`q_m` are learned per modality:

    - the **evidence** for trusting it, which weights the candidates, from the labels of the
      classes: it minimizes the negative log-likelihood of the fused prediction;
    - the **harm**, which raises alarms, without labels: how much damage changes the prediction
      from this modality alone. ``p_values`` compares it with that of intact samples.

    Before the fit, the evidence is the log-quality minus a prior, and there is no harm.

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
        slope: (M,), :math:`\kappa`.
        offset: (K,), :math:`c`.
        late_share: (), the share of late fusion in each candidate of a head that mixes the two.
        harm_direction: The direction of the harm, like ``direction``.
        harm_slope: The slope of the harm.
        harm_bias: The bias of the harm.

    Shape:
        - ``features[name]``: (B, D_m), standardized; ``log_quality``: (B, M)
        - Output: (B, M), the evidence for each modality

    Example:
        >>> import torch
        >>> from robustfusion import LearnedTrust
        >>> features = {"image": torch.randn(300, 8), "text": torch.randn(300, 4)}
        >>> logits = torch.randn(300, 2, 3)  # of a model on images and a model on texts
        >>> trust = LearnedTrust({"image": 8, "text": 4}, subsets=[("image",), ("text",)])
        >>> fit = trust.fit(features, logits, torch.randint(3, (300,)))
        >>> trust.weights(trust(features)).shape  # one for each model
        torch.Size([300, 2])

    Note:
        .. math:: g_m = a_m^\top z_m + \kappa_m q_m + b_m, \qquad
                  w_S = \operatorname{softmax}_S \Big( c_S + \sum_{m \in S} g_m \Big)

        The fit starts at :math:`a = 0`, :math:`\kappa = 1`, which is the rule without learning,
        and the penalty of moving away from it is chosen by cross-validation over samples and kinds
        of damage. If nothing beats the start by more than chance, the weights stay as they were.
    """

    direction: Tensor
    bias: Tensor
    slope: Tensor
    offset: Tensor
    late_share: Tensor
    harm_direction: Tensor
    harm_bias: Tensor
    harm_slope: Tensor
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
        width, modalities = sum(self.dims.values()), len(self.dims)
        self.register_buffer("direction", torch.zeros(width, modalities))
        self.register_buffer("bias", torch.full((modalities,), -log_prior))
        self.register_buffer("slope", torch.ones(modalities))
        self.register_buffer("offset", torch.zeros(len(self.candidates)))
        self.register_buffer("late_share", torch.tensor(0.5))
        self.register_buffer("harm_direction", torch.zeros(width, modalities))
        self.register_buffer("harm_bias", torch.zeros(modalities))
        self.register_buffer("harm_slope", torch.zeros(modalities))
        # Harm of intact samples, each by a function that was fitted without it.
        self.register_buffer("references", torch.zeros(modalities, _REFERENCES))
        self.register_buffer("reference_count", torch.zeros(modalities, dtype=torch.long))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        change = keep_float32(fn, *self.buffers(recurse=False))
        return cast("Self", super()._apply(change, recurse))  # type: ignore[no-untyped-call]

    def reset(self) -> None:
        """Forget what was learned; the evidence is the log-quality minus the prior again."""
        for buffer in self.buffers(recurse=False):
            buffer.zero_()
        self.bias.fill_(-self.log_prior)
        self.slope.fill_(1)
        self.late_share.fill_(0.5)

    def forward(self, features: Mapping[str, Tensor], log_quality: Tensor | None = None) -> Tensor:
        """Return the evidence for trusting each modality, (B, M)."""
        return self._linear(features, log_quality, self.direction, self.slope, self.bias)

    def harm(self, features: Mapping[str, Tensor], log_quality: Tensor | None = None) -> Tensor:
        """Return how much each modality's prediction changed by damage, as predicted, (B, M)."""
        if log_quality is not None:
            log_quality = log_quality.clamp_min(LOWEST_LOG_QUALITY)
        return self._linear(
            features, log_quality, self.harm_direction, self.harm_slope, self.harm_bias
        )

    def p_values(
        self, features: Mapping[str, Tensor], log_quality: Tensor | None = None
    ) -> Tensor:
        """Return the share of intact samples with at least this harm, (B, M).

        A small value is an alarm. NaN for a modality without damaged samples in the fit.
        """
        harm = self.harm(features, log_quality)
        index = torch.arange(_REFERENCES, device=harm.device)
        columns = [
            conformal_p_value(values, references, index < count).where(count > 0, torch.nan)
            for values, references, count in zip(
                harm.unbind(1), self.references, self.reference_count, strict=True
            )
        ]
        return torch.stack(columns, dim=1)

    def weights(self, evidence: Tensor, available: Tensor | None = None) -> Tensor:
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
        """Return log-weights up to a constant, (B, M) and (B, K, M) -> (B, K)."""
        return evidence[:, None].where(trusted, 0.0).sum(-1) + self.offset

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
        task: Task = "multiclass",
    ) -> TrustFit:
        """Learn from held-out samples, some of them damaged.

        Args:
            features: (N, D_m) for each modality, standardized.
            logits: (N, K, C), the prediction of each candidate.
            target: The target of each sample, see :mod:`robustfusion.tasks`; numbers must be
                standardized, and ``logits`` alike.
            available: (N, M) bool; ``None`` means that every modality is present everywhere.
            kind: (N,) long, 0 for intact samples, else the number of the kind of damage;
                ``None`` treats all samples alike.
            group: (N,) long, equal for all copies of one sample, which cross-validation keeps
                together; ``None`` means that all samples differ.
            task: What the logits are.

        Returns:
            The chosen penalty and what the fit gained.
        """
        count = check_features(features, self.dims)
        if logits.shape[:2] != (count, len(self.candidates)):
            raise ValueError(
                f"logits must have shape ({count}, {len(self.candidates)}, C), one prediction per "
                f"candidate, got {tuple(logits.shape)}"
            )
        check_target(target, logits, task)
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
            ),
            task,
        )

    @torch.no_grad()
    def fit_held_out(self, samples: HeldOut, task: Task = "multiclass") -> TrustFit:
        """Learn evidence and harm from samples as a head sees them."""
        self.reset()
        fit, numbers = TrustProblem(samples, self.candidates, self.log_prior, task).fit()
        self.bias.copy_(numbers.bias)
        self.slope.copy_(numbers.slope)
        self.offset.copy_(numbers.offset)
        self.late_share.copy_(numbers.late_share[0])
        ends = itertools.accumulate(self.dims.values())
        for index, (name, end) in enumerate(zip(self.dims, ends, strict=True)):
            block = slice(end - self.dims[name], end)
            self.direction[block, index] = numbers.directions[index]
            if (name,) not in self.candidates.subsets:
                continue
            harm = fit_harm(samples, name, self.candidates.subsets.index((name,)), task)
            if harm is None:
                continue
            self.harm_direction[block, index] = harm.direction
            self.harm_slope[index], self.harm_bias[index] = harm.slope, harm.bias
            chosen = torch.linspace(
                0, len(harm.references) - 1, min(len(harm.references), _REFERENCES)
            )
            references = harm.references[chosen.round().long()]
            self.references[index, : len(references)] = references
            self.reference_count[index] = len(references)
        return fit

    def _linear(
        self,
        features: Mapping[str, Tensor],
        log_quality: Tensor | None,
        direction: Tensor,
        slope: Tensor,
        bias: Tensor,
    ) -> Tensor:
        check_features(features, self.dims)
        with torch.autocast(direction.device.type, enabled=False):
            rows = torch.cat([features[name] for name in self.dims], dim=1).to(direction.dtype)
            value = torch.addmm(bias, rows, direction)
            return value if log_quality is None else torch.addcmul(value, log_quality, slope)

    extra_repr = arguments_of
