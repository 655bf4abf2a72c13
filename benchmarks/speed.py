"""Speed and memory as ratios within one run: each row beside its goal.

python benchmarks/speed.py            # writes benchmarks/results/speed.json
python benchmarks/speed.py --quick    # a minute, for a look

Peers are measured where they are installed: pytorch-metric-learning, scikit-learn, faiss-cpu and
torchmultimodal-nightly (with iopath). imml's fusion and lightly need torchvision, of which there
is no CPU build for the torch measured here.
"""

import argparse
import importlib.util
import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from _record import write_record
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from robustfusion import (
    DRFHead,
    FeatureQueue,
    GaussianQualityEstimator,
    LearnedTokens,
    NeighborQualityEstimator,
    PaperDRFHead,
    QualityWeightedFusion,
)
from robustfusion.baselines import ConcatenationHead
from robustfusion.functional import nearest_similarity

WIDTH = 768
SHARE, EPOCH = "the head's share", "an epoch of 10,000 feature rows"
READY = {"image": 1280, "text": 384}  # widths of frozen EfficientNet-Lite0 and MiniLM


class Clock:
    """Median milliseconds of a call; alternates the calls so that a slow spell hits them all."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, *calls: Callable[[], Any], rounds: int = 3) -> list[float]:
        samples: list[list[float]] = [[] for _ in calls]
        for _ in range(rounds):
            for times, call in zip(samples, calls, strict=True):
                timer = Timer("f()", globals={"f": call}, num_threads=torch.get_num_threads())
                measured = timer.blocked_autorange(min_run_time=self.seconds)
                times.append(measured.median * 1e3)
        return [sorted(times)[len(times) // 2] for times in samples]


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def row(
    what: str, ours: float, reference: float, goal: float | None, beside: str
) -> dict[str, Any]:
    ratio = ours / reference
    return {
        "what": what,
        "ms": ours,
        "beside": beside,
        "beside_ms": reference,
        "ratio": ratio,
        "goal": goal,
        "met": None if goal is None else ratio <= goal,
    }


def enqueue(clock: Clock) -> list[dict[str, Any]]:
    rows = []
    features, mask = torch.randn(256, WIDTH), torch.rand(256) < 0.7
    for capacity in (512, 65536):
        queue = FeatureQueue(WIDTH, capacity)
        bare = torch.zeros(capacity, WIDTH)
        slots = (torch.arange(256) + capacity - 100) % capacity
        calls = [
            lambda queue=queue: queue.enqueue(features, mask),
            lambda bare=bare, slots=slots: bare.index_copy_(0, slots, features),
        ]
        names = []
        if installed("pytorch_metric_learning"):
            from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory

            memory = CrossBatchMemory(ContrastiveLoss(), WIDTH, memory_size=capacity)
            labels = torch.zeros(256, dtype=torch.long)
            calls.append(
                lambda memory=memory, labels=labels: memory.add_to_memory(features, labels, 256)
            )
            names.append("pytorch-metric-learning CrossBatchMemory.add_to_memory, unmasked")
        times = clock(*calls)
        what = f"enqueue 256 × {WIDTH}, 70 % available, L = {capacity}"
        rows.append(row(what, times[0], times[1], 1.5, "a bare index_copy_ of all 256 rows"))
        rows += [
            row(f"peer, L = {capacity}: {name}", time, times[1], None, "the same index_copy_")
            for name, time in zip(names, times[2:], strict=True)
        ]
    return rows


def statistics(clock: Clock) -> list[dict[str, Any]]:
    rows = []
    features = torch.randn(16, WIDTH)
    for kind in ("spherical", "diag"):

        def step(queue: FeatureQueue, kind: str = kind) -> None:
            queue.enqueue(features)
            assert queue.moments is not None
            queue.moments.gaussian(kind)  # type: ignore[arg-type]

        small, large = (
            FeatureQueue(WIDTH, capacity, track_moments=True) for capacity in (512, 65536)
        )
        times = clock(
            lambda small=small, step=step: step(small), lambda large=large, step=step: step(large)
        )
        rows.append(
            row(f"enqueue 16 and {kind} moments, L = 65,536", times[1], times[0], 1.3, "L = 512")
        )
        estimator = GaussianQualityEstimator(WIDTH, covariance_type=kind)  # type: ignore[arg-type]
        again = clock(
            lambda large=large, estimator=estimator: estimator.fit(large.storage), rounds=1
        )
        rows.append(
            row(
                f"recomputing {kind} moments, L = 65,536",
                again[0],
                times[1],
                None,
                "kept up to date",
            )
        )
    return rows


def full_covariance(clock: Clock) -> list[dict[str, Any]]:
    samples = torch.randn(2048, WIDTH)
    estimator = GaussianQualityEstimator(WIDTH, covariance_type="full", shrinkage=0.1)
    estimator.fit(samples)
    covariance = torch.cov(samples.T) + 0.1 * torch.eye(WIDTH)
    stored, slots = torch.ones(2048, dtype=torch.bool), torch.arange(2048)
    refresh, fit, cholesky, product = clock(
        lambda: estimator.adapt(samples, stored, slots),
        lambda: estimator.fit(samples),
        lambda: torch.linalg.cholesky(covariance),
        lambda: samples.T @ samples,
    )
    size, beside = f"N = 2,048, D = {WIDTH}", "one Cholesky factor and the matrix product"
    rows = [
        row(f"refresh of a full covariance, {size}", refresh, cholesky + product, 2.0, beside),
        row(f"fit, which also scores each row, {size}", fit, cholesky + product, None, beside),
    ]
    if installed("sklearn"):
        from sklearn.covariance import EmpiricalCovariance

        array = samples.numpy()
        peer = clock(lambda: EmpiricalCovariance().fit(array), rounds=1)
        what = "peer: scikit-learn EmpiricalCovariance.fit"
        rows.append(row(what, peer[0], refresh, None, "ours, the refresh"))
    return rows


def neighbors(clock: Clock) -> list[dict[str, Any]]:
    rows = []
    batch, capacity = 256, 65536
    queries, stored = torch.randn(batch, WIDTH), torch.randn(capacity, WIDTH)
    inverse = 1 / torch.linalg.vector_norm(stored, dim=1)
    origin, scale = torch.zeros(WIDTH), torch.ones(WIDTH)
    out = torch.empty(batch, capacity)
    ours, product = clock(
        lambda: nearest_similarity(queries, stored, inverse, origin=origin, scale=scale),
        lambda: torch.mm(queries, stored.T, out=out),
    )
    what = f"mean cosine to the 10 nearest of {capacity:,}, B = {batch}, D = {WIDTH}"
    rows.append(row(what, ours, product, 1.3, "its matrix product alone"))
    if installed("faiss"):
        import faiss

        index = faiss.IndexFlatIP(WIDTH)
        index.add(F.normalize(stored, dim=-1).numpy())
        faiss.omp_set_num_threads(torch.get_num_threads())
        array = F.normalize(queries, dim=-1).numpy()
        peer = clock(lambda: index.search(array, 10), rounds=1)
        rows.append(row("peer: faiss IndexFlatIP.search", peer[0], ours, None, "ours"))
    if installed("sklearn"):
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(stored.numpy())
        array = queries.numpy()
        peer = clock(lambda: search.kneighbors(array), rounds=1)
        rows.append(row("peer: scikit-learn NearestNeighbors, brute", peer[0], ours, None, "ours"))
        rows += outliers(clock)
    return rows


def outliers(clock: Clock) -> list[dict[str, Any]]:
    """A whole quality score beside the outlier score that people know."""
    from sklearn.neighbors import LocalOutlierFactor

    known, features = torch.randn(2048, WIDTH), torch.randn(256, WIDTH)
    estimator = NeighborQualityEstimator(WIDTH).fit(known).eval()
    factor = LocalOutlierFactor(n_neighbors=10, novelty=True).fit(known.numpy())
    array = features.numpy()
    ours, peer = clock(lambda: estimator(features), lambda: factor.score_samples(array))
    what = f"peer: scikit-learn LocalOutlierFactor, 256 × {WIDTH} beside 2,048 rows"
    return [row(what, peer, ours, None, "NeighborQualityEstimator")]


def fusion(clock: Clock) -> list[dict[str, Any]]:
    """Fusing two vectors a sample, with their gradient."""
    parts = {name: torch.randn(16, 256, requires_grad=True) for name in READY}
    log_quality, ours = torch.randn(16, 2), QualityWeightedFusion()

    def weighted() -> None:
        ours(torch.stack(list(parts.values()), 1), log_quality).sum().backward()

    calls, names = [weighted], []
    if installed("torchmultimodal"):
        from torchmultimodal.modules.fusions.attention_fusion import AttentionFusionModule

        attention = AttentionFusionModule(dict.fromkeys(READY, 256))
        calls.append(lambda: attention(parts).sum().backward())
        names.append("torchmultimodal AttentionFusionModule")
    times = clock(*calls)
    beside = "QualityWeightedFusion, forward and backward, 16 × 2 × 256"
    return [
        row(f"peer: {name}", time, times[0], None, beside)
        for name, time in zip(names, times[1:], strict=True)
    ]


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, fullgraph=True)


def draw(batch: int) -> dict[str, Tensor]:
    return {name: torch.randn(batch, dim) for name, dim in READY.items()}


def filled(make: Callable[[dict[str, int], int], nn.Module]) -> nn.Module:
    """A head whose queues are full, if it has any."""
    head = make(READY, 3).train()
    with torch.no_grad():
        for _ in range(math.ceil(2048 / 256)):
            head(draw(256))
    return head


def training(clock: Clock) -> list[dict[str, Any]]:
    """A step on ready features, everything as it comes."""
    features, labels = draw(16), torch.randint(3, (16,))

    def step(head: nn.Module) -> None:
        head.zero_grad()
        head.loss(head(features), labels).backward()  # type: ignore[operator]

    tokens = partial(DRFHead, stand_in=LearnedTokens)
    heads = [filled(make) for make in (DRFHead, tokens, ConcatenationHead, PaperDRFHead)]
    fast = [compiled(filled(make)) for make in (DRFHead, ConcatenationHead)]
    ours, without, plain, paper = clock(*(partial(step, head) for head in heads))
    fast_ours, fast_plain = clock(*(partial(step, head) for head in fast))
    what = "training step of DRFHead, image 1280, text 384, B = 16"
    return [
        row(what, ours, plain, 4.0, "ConcatenationHead"),
        row(f"{what}, LearnedTokens", without, plain, 3.0, "ConcatenationHead"),
        row(what, ours, paper, 0.2, "PaperDRFHead"),
        row(f"{what}, compiled", fast_ours, fast_plain, 4.0, "ConcatenationHead, compiled"),
        row(f"{what}, compiled", fast_ours, ours, None, "the same step, eager"),
    ]


class Tokens(nn.Module):
    """A Transformer on random tokens, as large as the encoders of small models are."""

    def __init__(self, layers: int, width: int, length: int, out: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers)
        self.tokens = nn.Parameter(torch.randn(1, length, width))
        self.out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(self.layers(self.tokens + x[:, None]).mean(1))
        return made


def felt(clock: Clock) -> list[dict[str, Any]]:
    """What a user waits for: the head's part of a step with encoders, and an epoch without."""
    features, labels = draw(16), torch.randint(3, (16,))
    encoders = {"image": Tokens(12, 384, 197, 1280), "text": Tokens(6, 384, 64, 384)}
    inputs = {name: torch.randn(16, 384) for name in encoders}
    head, plain = filled(DRFHead), filled(ConcatenationHead)

    def step(head: Any) -> None:
        head.zero_grad()
        head.loss(head(features), labels).backward()

    def encode() -> None:
        torch.cat([encoders[m](x) for m, x in inputs.items()], 1).sum().backward()

    ours, beside, encoding = clock(partial(step, head), partial(step, plain), encode)
    what = "of a training step with a ViT-S and a MiniLM, B = 16"
    epoch, plain_epoch = (10_000 / 16 * ms for ms in (ours, beside))
    return [
        row(f"{SHARE} {what}", ours, ours + encoding, None, "the whole step"),
        row(f"{EPOCH}, B = 16", epoch, plain_epoch, None, "ConcatenationHead"),
    ]


def inference(clock: Clock) -> list[dict[str, Any]]:
    """Evaluation on ready features, everything as it comes."""
    rows = []
    ours, plain = (filled(make).eval() for make in (DRFHead, ConcatenationHead))
    fast_ours, fast_plain = compiled(ours), compiled(plain)
    for batch, goal in ((1, 6.0), (256, None)):
        features = draw(batch)
        calls = [partial(head, features) for head in (ours, plain, fast_ours, fast_plain)]
        with torch.inference_mode():
            times = clock(*calls)
        what = f"evaluation of DRFHead, image 1280, text 384, B = {batch}"
        rows.append(row(what, times[0], times[1], goal, "ConcatenationHead"))
        beside = "ConcatenationHead, compiled"
        rows.append(row(f"{what}, compiled", times[2], times[3], goal, beside))
    products = partial(bare, ours, features)
    with torch.inference_mode():
        whole, reference = clock(partial(ours, features), products)
    beside = "the matrix products of its queues and layers, bare"
    rows.append(row(f"evaluation of DRFHead, B = {batch}", whole, reference, 1.3, beside))
    return rows


def bare(head: Any, features: dict[str, Tensor]) -> None:
    """The large matrix products of the evaluation alone."""
    for name, x in features.items():
        x @ head.queues[name].storage.T
        x @ head.embed[name].weight.T
        x @ head.embed_alone[name].weight.T
        encode, *_, decode = head.stand_in.converters[name].layers
        x @ encode.weight.T
        made = torch.empty(len(x), len(features), decode.in_features) @ decode.weight.T
        made @ head.embed[name].weight.T
    hidden = torch.empty(len(x), len(head.candidates), head.hidden_features)
    hidden @ head.trunk.weight.T
    second = head.alone[2].weight  # of the networks that judge each modality alone
    torch.empty(len(second), len(x), second.shape[1]) @ second


def multiply_adds(clock: Clock) -> list[dict[str, Any]]:
    """What matrix products alone cost, counted: no other way of writing a head spares these."""
    counts = []
    for make in (DRFHead, partial(DRFHead, stand_in=LearnedTokens), ConcatenationHead):
        head = filled(make)
        with FlopCounterMode(display=False) as step:
            head.loss(head(draw(16)), torch.zeros(16, dtype=torch.long)).backward()  # type: ignore[operator]
        head.eval().requires_grad_(False)
        with FlopCounterMode(display=False) as evaluation:
            head(draw(1))
        counts.append((step.get_total_flops() // 2, evaluation.get_total_flops() // 2))
    (step, one), (step_with_tokens, _), (plain_step, plain_one) = counts
    search = 16 * 2048 * sum(READY.values())
    what = "multiply-adds, training step of DRFHead, image 1280, text 384, B = 16"
    return [
        {
            "what": words,
            "count": count,
            "beside": "ConcatenationHead",
            "beside_count": beside,
            "ratio": count / beside,
            "goal": None,
            "met": None,
        }
        for words, count, beside in (
            (what, step, plain_step),
            (f"{what}, LearnedTokens", step_with_tokens, plain_step),
            (f"{what}, its search among 2,048 rows alone", search, plain_step),
            ("multiply-adds, evaluation of DRFHead, B = 1", one, plain_one),
        )
    ]


class _Kernels(TorchDispatchMode):
    """Counts the operators that are no views of what is there."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def count_kernels(call: Callable[[], Any]) -> int:
    """How many kernels a call launches, about: non-view ATen operators, on any device."""
    with _Kernels() as kernels:
        call()
    return kernels.count


def kernels(clock: Clock) -> list[dict[str, Any]]:
    """Kernels of a training step and of an evaluation beside their goals."""
    counts: dict[str, list[int]] = {"training step": [], "evaluation": []}
    for number in (2, 3):
        head = DRFHead({f"m{index}": 64 for index in range(number)}, 3)
        features = {name: torch.randn(64, 64) for name in head.dims}
        fill_with(head, features)
        trained(head, features)
        counts["training step"].append(count_kernels(partial(trained, head, features)))
        counts["evaluation"].append(count_kernels(partial(predicted, head, features)))
    rows = []
    for (what, (two, three)), goals in zip(counts.items(), ((350, 60), (80, 15)), strict=True):
        for words, found, goal in (
            ("two modalities", two, goals[0]),
            ("each further modality", three - two, goals[1]),
        ):
            rows.append(
                {
                    "what": f"kernels, {what} of DRFHead, {words}",
                    "count": found,
                    "beside": "what was asked",
                    "beside_count": goal,
                    "ratio": found / goal,
                    "goal": 1.0,
                    "met": found <= goal,
                }
            )
    return rows


def modalities(clock: Clock) -> list[dict[str, Any]]:
    """Twice the modalities cost at most four times as much: not every subset is a candidate."""
    calls: dict[int, tuple[Callable[[], Any], Callable[[], Any]]] = {}
    for number in (4, 8, 16):
        head = DRFHead({f"m{index}": 256 for index in range(number)}, 3)
        features = {name: torch.randn(64, 256) for name in head.dims}
        fill_with(head, features)
        calls[number] = (partial(trained, head, features), partial(predicted, head, features))
    rows = []
    for place, what in enumerate(("training step", "inference")):
        times = clock(*(pair[place] for pair in calls.values()))
        for less, more, before, after in zip(
            calls, list(calls)[1:], times, times[1:], strict=False
        ):
            what_now = f"{what} of DRFHead, {more} modalities, D = F = 256, B = 64"
            rows.append(row(what_now, after, before, 4.0, f"{less} modalities"))
    return rows


def fill_with(head: DRFHead, features: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for _ in range(10):
            head(features)


def trained(head: DRFHead, features: dict[str, Tensor]) -> None:
    head.train().zero_grad()
    head.loss(head(features), torch.zeros(64, dtype=torch.long)).backward()


@torch.inference_mode()
def predicted(head: DRFHead, features: dict[str, Tensor]) -> None:
    head.eval()(features)


def memory() -> list[dict[str, Any]]:
    estimator = NeighborQualityEstimator(WIDTH, capacity=2048)
    queue = estimator.queue.storage.numel() * 4
    state = sum(b.numel() * b.element_size() for b in estimator.buffers())
    peak = peak_of_a_step(modalities=12, classes=10_000, batch=64)
    return [
        {
            "what": "peak memory of a training step, 12 modalities, 10,000 classes, B = 64",
            "bytes": peak,
            "beside": "what was asked",
            "beside_bytes": 2**29,
            "ratio": peak / 2**29,
            "goal": 1.0,
            "met": peak <= 2**29,
        },
        {
            "what": f"state of NeighborQualityEstimator({WIDTH}), L = 2,048",
            "bytes": state,
            "beside": "the rows of its queue",
            "beside_bytes": queue,
            "ratio": state / queue,
            "goal": 1.1,
            "met": state / queue <= 1.1,
        },
    ]


def peak_of_a_step(modalities: int, classes: int, batch: int) -> int:
    """The most bytes a step holds at once, beyond the model and its gradients."""
    head = DRFHead({f"m{index}": 64 for index in range(modalities)}, classes)
    features = {name: torch.randn(batch, 64) for name in head.dims}

    def step() -> None:
        head.loss(head(features), torch.zeros(batch, dtype=torch.long)).backward()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(moved for _, moved in moves))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clock = Clock(0.2 if arguments.quick else 1.0)
    rows: list[dict[str, Any]] = []
    parts = (
        enqueue,
        statistics,
        full_covariance,
        neighbors,
        fusion,
        training,
        felt,
        inference,
        multiply_adds,
        kernels,
        modalities,
    )
    for part in parts:
        rows += part(clock)
        print(part.__name__, flush=True)
    rows += memory()
    for found in rows:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()})
    if not arguments.quick:
        write_record("speed", {"rows": rows}, data="random features", seeds=[0])


if __name__ == "__main__":
    main()
