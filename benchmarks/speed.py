"""Speed and memory of the parts and heads, as ratios within one run.

python benchmarks/speed.py --threads 1    # writes benchmarks/results/speed.json
python benchmarks/speed.py --quick        # a minute, for a look

Peers are measured where they are installed: pytorch-metric-learning, scikit-learn, faiss-cpu and
torchmultimodal-nightly (with iopath).
"""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from _ratios import finish, row
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
from robustfusion.moments import RunningMoments

WIDTH = 768
SHARE, EPOCH = "the head's share", "an epoch of 10,000 feature rows"
READY = {"image": 1280, "text": 384}  # widths of frozen EfficientNet-Lite0 and MiniLM
STEP = "training step of DRFHead, image 1280, text 384, B = 16"
Rows = list[dict[str, Any]]


class Clock:
    """Median milliseconds of each call; calls take turns so that a slow spell hits them all."""

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


def enqueue(clock: Clock) -> Rows:
    rows = []
    features, mask = torch.randn(256, WIDTH), torch.rand(256) < 0.7
    for capacity in (512, 65536):
        queue, bare = FeatureQueue(WIDTH, capacity), torch.zeros(capacity, WIDTH)
        slots = (torch.arange(256) + capacity - 100) % capacity
        calls = [partial(queue.enqueue, features, mask)]
        calls.append(partial(bare.index_copy_, 0, slots, features))
        if installed("pytorch_metric_learning"):
            from pytorch_metric_learning.losses import ContrastiveLoss, CrossBatchMemory

            memory = CrossBatchMemory(ContrastiveLoss(), WIDTH, memory_size=capacity)
            labels = torch.zeros(256, dtype=torch.long)
            calls.append(partial(memory.add_to_memory, features, labels, 256))
        ours, copy, *peer = clock(*calls)
        what = f"enqueue 256 × {WIDTH}, 70 % available, L = {capacity}"
        rows.append(row(what, ours, copy, "a bare index_copy_ of all 256 rows", 1.5))
        name = "pytorch-metric-learning CrossBatchMemory.add_to_memory, unmasked"
        what = f"peer, L = {capacity}: {name}"
        rows += [row(what, time, copy, "the same index_copy_") for time in peer]
    return rows


def statistics(clock: Clock) -> Rows:
    rows = []
    features = torch.randn(16, WIDTH)

    def update(queue: FeatureQueue, moments: RunningMoments, kind: Any) -> None:
        queue.enqueue(features)
        moments.observe(features)
        moments.gaussian(kind)

    for kind in ("spherical", "diag"):
        pairs = [(FeatureQueue(WIDTH, n), RunningMoments(WIDTH, n)) for n in (512, 65536)]
        small, large = clock(*(partial(update, *pair, kind) for pair in pairs))
        what = f"enqueue 16 and {kind} moments, L = 65,536"
        rows.append(row(what, large, small, "L = 512", 1.3))
        estimator = GaussianQualityEstimator(WIDTH, covariance_type=kind)  # type: ignore[arg-type]
        (again,) = clock(partial(estimator.fit, pairs[1][0].storage), rounds=1)
        what = f"recomputing {kind} moments, L = 65,536"
        rows.append(row(what, again, large, "kept up to date"))
    return rows


def full_covariance(clock: Clock) -> Rows:
    samples = torch.randn(2048, WIDTH)
    estimator = GaussianQualityEstimator(WIDTH, covariance_type="full", shrinkage=0.1)
    estimator.fit(samples)
    covariance = torch.cov(samples.T) + 0.1 * torch.eye(WIDTH)
    stored, slots = torch.ones(2048, dtype=torch.bool), torch.arange(2048)
    refresh, fit, cholesky, product = clock(
        lambda: estimator.update(samples, stored, slots),
        lambda: estimator.fit(samples),
        lambda: torch.linalg.cholesky(covariance),
        lambda: samples.T @ samples,
    )
    size, name = f"N = 2,048, D = {WIDTH}", "one Cholesky factor and the matrix product"
    rows = [
        row(f"refresh of a full covariance, {size}", refresh, cholesky + product, name, 2.0),
        row(f"fit, which also scores each row, {size}", fit, cholesky + product, name),
    ]
    if installed("sklearn"):
        from sklearn.covariance import EmpiricalCovariance

        (peer,) = clock(partial(EmpiricalCovariance().fit, samples.numpy()), rounds=1)
        what = "peer: scikit-learn EmpiricalCovariance.fit"
        rows.append(row(what, peer, refresh, "ours, the refresh"))
    return rows


def neighbors(clock: Clock) -> Rows:
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
    rows = [row(what, ours, product, "its matrix product alone", 1.3)]
    if installed("faiss"):
        import faiss

        index = faiss.IndexFlatIP(WIDTH)
        index.add(F.normalize(stored, dim=-1).numpy())
        faiss.omp_set_num_threads(torch.get_num_threads())
        array = F.normalize(queries, dim=-1).numpy()
        (peer,) = clock(partial(index.search, array, 10), rounds=1)
        rows.append(row("peer: faiss IndexFlatIP.search", peer, ours, "ours"))
    if installed("sklearn"):
        from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

        search = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(stored.numpy())
        (peer,) = clock(partial(search.kneighbors, queries.numpy()), rounds=1)
        rows.append(row("peer: scikit-learn NearestNeighbors, brute", peer, ours, "ours"))
        known, features = torch.randn(2048, WIDTH), torch.randn(256, WIDTH)
        estimator = NeighborQualityEstimator(WIDTH).fit(known).eval()
        factor = LocalOutlierFactor(n_neighbors=10, novelty=True).fit(known.numpy())
        array = features.numpy()
        ours, peer = clock(partial(estimator, features), partial(factor.score_samples, array))
        what = f"peer: scikit-learn LocalOutlierFactor, 256 × {WIDTH} against 2,048 rows"
        rows.append(row(what, peer, ours, "NeighborQualityEstimator"))
    return rows


def fusion(clock: Clock) -> Rows:
    """Fusing two vectors a sample, with their gradient."""
    if not installed("torchmultimodal"):
        return []
    from torchmultimodal.modules.fusions.attention_fusion import AttentionFusionModule

    parts = {name: torch.randn(16, 256, requires_grad=True) for name in READY}
    log_quality, fuse = torch.randn(16, 2), QualityWeightedFusion()
    attention = AttentionFusionModule(dict.fromkeys(READY, 256))
    ours, peer = clock(
        lambda: fuse(torch.stack(list(parts.values()), 1), log_quality).sum().backward(),
        lambda: attention(parts).sum().backward(),
    )
    name = "QualityWeightedFusion, forward and backward, 16 × 2 × 256"
    return [row("peer: torchmultimodal AttentionFusionModule", peer, ours, name)]


def draw(batch: int, dims: dict[str, int] = READY) -> dict[str, Tensor]:
    return {name: torch.randn(batch, dim) for name, dim in dims.items()}


def filled(make: Callable[..., nn.Module], dims: dict[str, int] = READY) -> nn.Module:
    """A head whose queues are full, if it has any."""
    head = make(dims, 3).train()
    with torch.no_grad():
        for _ in range(8):
            head(draw(256, dims))
    return head


def step(head: Any, features: dict[str, Tensor]) -> None:
    """Forward and backward of a training step."""
    head.train().zero_grad()
    labels = torch.arange(len(next(iter(features.values())))) % 3
    head.loss(head(features), labels).backward()


def trained(head: Any, features: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """A whole training step."""
    step(head, features)
    optimizer.step()


@torch.inference_mode()
def predict(head: Any, features: dict[str, Tensor]) -> None:
    head.eval()(features)


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, fullgraph=True)


def training(clock: Clock) -> Rows:
    """A step on ready features with the defaults of every head."""
    features = draw(16)
    tokens = partial(DRFHead, stand_in=LearnedTokens)
    heads = [filled(make) for make in (DRFHead, tokens, ConcatenationHead, PaperDRFHead)]
    fast = [compiled(filled(make)) for make in (DRFHead, ConcatenationHead)]
    ours, without, plain, paper = clock(*(partial(step, head, features) for head in heads))
    many, plain_many = clock(*(partial(step, head, draw(64)) for head in heads[::2]))
    fast_ours, fast_plain = clock(*(partial(step, head, features) for head in fast))
    return [
        row(STEP, ours, plain, "ConcatenationHead", 4.5),
        row(STEP.replace("16", "64"), many, plain_many, "ConcatenationHead", 3.5),
        row(f"{STEP}, LearnedTokens", without, plain, "ConcatenationHead", 3.0),
        row(STEP, ours, paper, "PaperDRFHead", 0.2),
        row(f"{STEP}, compiled", fast_ours, fast_plain, "ConcatenationHead, compiled", 4.0),
        row(f"{STEP}, compiled", fast_ours, ours, "the same step, eager"),
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
        features: Tensor = self.out(self.layers(self.tokens + x[:, None]).mean(1))
        return features


def in_use(clock: Clock) -> Rows:
    """The head's part of a step with encoders, and an epoch without."""
    features = draw(16)
    encoders = {"image": Tokens(12, 384, 197, 1280), "text": Tokens(6, 384, 64, 384)}
    inputs = {name: torch.randn(16, 384) for name in encoders}
    head, plain = filled(DRFHead), filled(ConcatenationHead)

    def encode() -> None:
        torch.cat([encoders[m](x) for m, x in inputs.items()], 1).sum().backward()

    calls = [partial(step, head, features), encode]
    for whole in (head, plain):
        optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-3, fused=True)
        calls.append(partial(trained, whole, features, optimizer))
    ours, encoding, *steps = clock(*calls)
    what = f"{SHARE} of a training step with a ViT-S and a MiniLM, B = 16"
    epoch, plain_epoch = (10_000 / 16 * ms for ms in steps)
    return [
        row(what, ours, ours + encoding, "the whole step"),
        row(f"{EPOCH} with AdamW, B = 16", epoch, plain_epoch, "ConcatenationHead"),
    ]


def inference(clock: Clock) -> Rows:
    """Evaluation on ready features with the defaults of every head."""
    rows = []
    ours, plain = (filled(make).eval() for make in (DRFHead, ConcatenationHead))
    fast_ours, fast_plain = compiled(ours), compiled(plain)
    for batch in (1, 256):
        features = draw(batch)
        calls = [partial(head, features) for head in (ours, plain, fast_ours, fast_plain)]
        with torch.inference_mode():
            times = clock(*calls)
        what = f"evaluation of DRFHead, image 1280, text 384, B = {batch}"
        rows.append(row(what, times[0], times[1], "ConcatenationHead"))
        name = "ConcatenationHead, compiled"
        rows.append(row(f"{what}, compiled", times[2], times[3], name))
    with torch.inference_mode():
        whole, reference = clock(partial(ours, features), partial(bare, ours, features))
    name = "the matrix products of its queues and layers, bare"
    return [*rows, row("evaluation of DRFHead, B = 256", whole, reference, name, 1.3)]


def bare(head: Any, features: dict[str, Tensor]) -> None:
    """The large matrix products of the evaluation, and nothing else."""
    for name, x in features.items():
        x @ head.queues[name].storage.T
        x @ head.embed[name].weight.T
        x @ head.branch_in[name].weight.T
        encode, *_, decode = head.stand_in.converters[name].layers
        x @ encode.weight.T
        recovered = torch.empty(len(x), len(features), decode.in_features) @ decode.weight.T
        recovered @ head.embed[name].weight.T
    hidden = torch.empty(len(x), len(head.candidates), head.hidden_features)
    hidden @ head.trunk.weight.T
    second = head.branches[2].weight  # the second layer of each late branch
    torch.empty(len(second), len(x), second.shape[1]) @ second


def multiply_adds(clock: Clock) -> Rows:
    """Multiply-adds of matrix products, counted: they do not depend on the machine."""
    counts = []
    for make in (DRFHead, partial(DRFHead, stand_in=LearnedTokens), ConcatenationHead):
        head = filled(make)
        with FlopCounterMode(display=False) as training_step:
            step(head, draw(16))
        head.eval().requires_grad_(False)
        with FlopCounterMode(display=False) as evaluation:
            head(draw(1))
        counts.append([f.get_total_flops() // 2 for f in (training_step, evaluation)])
    (full, one), (with_tokens, _), (plain, plain_one) = counts
    what = f"multiply-adds, {STEP}"
    return [
        row(words, count, reference, "ConcatenationHead", goal, unit="count")
        for words, count, reference, goal in (
            (what, full, plain, 2.9),
            (f"{what}, LearnedTokens", with_tokens, plain, None),
            ("multiply-adds, evaluation of DRFHead, B = 1", one, plain_one, None),
        )
    ]


class _Kernels(TorchDispatchMode):
    """Counts the operators that are no views."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def count_kernels(call: Callable[[], Any]) -> int:
    """Count the non-view ATen operators of a call, about the kernels that a GPU launches."""
    with _Kernels() as kernels:
        call()
    return kernels.count


def kernels(clock: Clock) -> Rows:
    """Kernels of a training step and of an evaluation, compared with their goals."""
    counts = []
    for number in (2, 3):
        dims = {f"m{index}": 64 for index in range(number)}
        head, features = filled(DRFHead, dims), draw(64, dims)
        step(head, features)
        counts.append([count_kernels(partial(call, head, features)) for call in (step, predict)])
    rows = []
    for what, two, three, goals in zip(
        ("training step", "evaluation"), *counts, ((300, 95), (170, 50)), strict=True
    ):
        words = ("two modalities", "each further modality")
        for name, count, goal in zip(words, (two, three - two), goals, strict=True):
            what_row = f"kernels, {what} of DRFHead, {name}"
            rows.append(row(what_row, count, goal, "the goal", 1.0, unit="count"))
    return rows


def modalities(clock: Clock) -> Rows:
    """Twice the modalities cost at most four times as much: not every subset is a candidate."""
    heads = {}
    for number in (4, 8, 16):
        dims = {f"m{index}": 256 for index in range(number)}
        heads[number] = filled(DRFHead, dims), draw(64, dims)
    rows = []
    for call, what in ((step, "training step"), (predict, "inference")):
        times = clock(*(partial(call, *pair) for pair in heads.values()))
        for (less, before), (more, after) in pairwise(zip(heads, times, strict=True)):
            what_row = f"{what} of DRFHead, {more} modalities, D = F = 256, B = 64"
            rows.append(row(what_row, after, before, f"{less} modalities", 4.0))
    return rows


def memory(clock: Clock) -> Rows:
    """Peak of a training step, beyond the model and its gradients; state of an estimator."""
    head = DRFHead({f"m{index}": 64 for index in range(12)}, 10_000)
    features = draw(64, head.dims)
    step(head, features)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(head, features)
    events = profiler.profiler.kineto_results.events()
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    peak = max(accumulate(moved for _, moved in moves))
    what = "peak memory of a training step, 12 modalities, 10,000 classes, B = 64"
    rows = [row(what, peak, 450_000_000, "the goal", 1.0, unit="bytes")]
    estimator = NeighborQualityEstimator(WIDTH, capacity=2048)
    queue = estimator.queue.storage.numel() * 4
    state = sum(b.numel() * b.element_size() for b in estimator.buffers())
    what = f"state of NeighborQualityEstimator({WIDTH}), L = 2,048"
    return [*rows, row(what, state, queue, "the rows of its queue", 1.1, unit="bytes")]


def importing(clock: Clock) -> Rows:
    """The time of importing the library after torch, each time in a process of its own."""
    code = "import torch, time; t = time.perf_counter(); import robustfusion; "
    command = [sys.executable, "-c", code + "print(1000 * (time.perf_counter() - t))"]
    runs = [float(subprocess.check_output(command)) for _ in range(15)]
    return [row("import robustfusion after torch", sorted(runs)[7], 200.0, "the goal", 1.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clock, rows = Clock(0.2 if arguments.quick else 1.0), []
    parts = (enqueue, statistics, full_covariance, neighbors, fusion, training, in_use)
    for part in (*parts, inference, multiply_adds, kernels, modalities, memory, importing):
        rows += part(clock)
        print(part.__name__, flush=True)
    finish("speed", rows, data="random features", keep=not arguments.quick)


if __name__ == "__main__":
    main()
