"""The posts that the main job makes for itself."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from main_job.drawing import draw_post
from main_job.posts import make_posts, plan_posts
from main_job.wording import BAD, GOOD, write_post

from robustfusion.datasets import MVSA, load_splits


def digest(root: Path) -> str:
    state = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            state.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return state.hexdigest()


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    seeds = {"a": 1, "b": 1, "c": 2}
    roots = [make_posts(tmp_path / name, n=40, seed=seed) for name, seed in seeds.items()]
    assert digest(roots[0]) == digest(roots[1])
    assert digest(roots[0]) != digest(roots[2])
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("mismatch", [0.0, 0.25, 0.7])
def test_the_readers_find_what_was_stated(tmp_path: Path, mismatch: float) -> None:
    root = make_posts(tmp_path / "posts", n=60, mismatch=mismatch)
    joint = MVSA(root, on_bad="raise")
    assert joint.report().class_counts == {"positive": 27, "neutral": 15, "negative": 18}
    differing = [post for post in joint.posts if post.text_label != post.image_label]
    assert len(differing) == round(mismatch * 60)
    assert all("neutral" in (post.text_label, post.image_label) for post in differing)
    texts = sum(post.text_label == "neutral" for post in differing)
    assert abs(2 * texts - len(differing)) <= 1
    assert len(MVSA(root, label_rule="equal")) == 60 - len(differing)
    assert joint[0]["inputs"]["image"].size == (64, 64)
    assert len(joint[0]["inputs"]["text"].split()) >= 5
    splits = load_splits(root / "splits.json")
    assert splits.sizes == {"train": 42, "val": 6, "test": 12}
    assert set(splits.ids) == set(joint.ids)


def test_posts_do_not_repeat(tmp_path: Path) -> None:
    root = make_posts(tmp_path / "posts", n=400)
    assert MVSA(root).report(load_splits(root / "splits.json")).leaked("text") == 0


def test_a_finished_folder_is_kept_and_another_is_refused(tmp_path: Path) -> None:
    root = make_posts(tmp_path / "posts", n=20)
    stamp = (root / "labelResultAll.txt").stat().st_mtime_ns
    assert make_posts(root, n=20) == root
    assert (root / "labelResultAll.txt").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="root must be empty or hold the same posts"):
        make_posts(root, n=21)
    (tmp_path / "empty").mkdir()
    make_posts(tmp_path / "empty", n=20)


def test_an_interrupted_run_leaves_no_folder(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert (done, total) == (50, 60)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_posts(tmp_path / "posts", n=60, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 5}, "n must be at least 20"),
        ({"mismatch": 0.9}, r"mismatch must be in \[0, 0.7\], got 0.9"),
        ({"size": 8}, "size must be in"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_posts(tmp_path / "posts", **options)  # type: ignore[arg-type]


def test_sentiment_words() -> None:
    random = np.random.default_rng(0)
    for sentiment, own in (("positive", set(GOOD)), ("negative", set(BAD))):
        texts = [write_post(sentiment, random) for _ in range(200)]
        with_own = sum(bool(own & set(text.lower().replace(",", "").split())) for text in texts)
        assert 0.7 < with_own / 200 < 0.95  # the rest are negations of the other side
    assert len({write_post("neutral", random) for _ in range(200)}) == 200


def test_images_of_the_three_sentiments_differ_on_average() -> None:
    means = {}
    for sentiment in ("positive", "neutral", "negative"):
        images = [
            np.asarray(draw_post(sentiment, 64, np.random.default_rng([k, 7])), np.float32)
            for k in range(40)
        ]
        assert all(image.shape == (64, 64, 3) and image.std() > 5 for image in images)
        means[sentiment] = float(np.mean(images))
    assert means["positive"] > means["neutral"] > means["negative"]


def test_plan_is_exact() -> None:
    pairs = plan_posts(1000, 0, 0.2)
    assert sum(text != image for text, image in pairs) == 200


def test_two_runs_may_make_the_same_posts(tmp_path: Path) -> None:
    root = tmp_path / "posts"

    def other(done: int, total: int) -> None:
        if not root.exists():
            make_posts(root, n=60)

    assert make_posts(root, n=60, progress=other) == root
    assert len(MVSA(root)) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["posts"]
