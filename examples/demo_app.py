"""Try the model in a browser: damage an image or a text and see prediction, alarm and weights.

    python examples/demo_app.py runs/drf_mvsa-001

opens a page in your browser with the DRF model of a run of drf_mvsa.py. Everything stays on your
machine: the page loads nothing from other hosts and sends nothing. Needs
``robustfusion[examples,demo]``.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

try:
    import numpy as np
    import streamlit as st
    from main_job.drawing import draw_post
    from main_job.predictor import Predictor
    from streamlit import runtime

    from robustfusion.datasets import MVSA, load_splits
    from robustfusion.datasets.reading import BadFileError, read_image
    from robustfusion.disruption import ImageCorruption, TextCorruption, sample_generator
    from robustfusion.disruption.images import ImageKind
    from robustfusion.disruption.texts import TextKind
except ImportError as error:
    sys.exit(f'{error}. The demo needs: pip install -e ".[examples,demo]"')

FLAGS = (
    "--server.address=127.0.0.1",  # by default it would listen on all interfaces
    "--browser.gatherUsageStats=false",
    "--client.toolbarMode=minimal",
    "--server.maxUploadSize=20",
)
TEXT = "So the garden was lovely this morning, we went to the market"
# The buttons: a label, a kind of damage, and its severity; "" removes the input.
IMAGE_BUTTONS = (("Intact", "mask", 0.0), ("Blacken", "mask", 1.0), ("Occlude", "occlusion", 0.4))
IMAGE_BUTTONS += (("Noise", "noise", 0.6), ("Remove", "", 0.0))
TEXT_BUTTONS = (("Intact", "mask", 0.0), ("Mask words", "mask", 0.6), ("Garble", "mojibake", 1.0))
TEXT_BUTTONS += (("Typos", "characters", 0.6), ("Remove", "", 0.0))
ALARM_RATE = 0.05  # expected share of false alarms on intact inputs


@st.cache_resource(show_spinner="Loading the model ...")
def load(run: str) -> Predictor:
    """Load the model once for all sessions."""
    return Predictor(Path(run))


@st.cache_data(show_spinner="Looking for an intact post ...")
def example_post(run: str) -> tuple[Any, str]:
    """Return an intact test post of a generated data set without an alarm; else a drawn one."""
    predictor = load(run)
    settings = predictor.settings
    root = Path(run).parent / f"posts-{settings.limit or 1500}-seed{settings.seed}"
    if predictor.generated and (root / "splits.json").is_file():
        posts = MVSA(root).select(load_splits(root / "splits.json").open_test("demo"))
        for index in range(min(len(posts), 50)):
            inputs, label = posts[index]["inputs"], posts[index]["label"]
            output = predictor([inputs["image"]], [inputs["text"]])
            p_values = [float(p) for p in predictor.p_values(output).values()]
            if min(p_values) > 2 * ALARM_RATE and int(output.logits.argmax()) == label:
                return inputs["image"], inputs["text"]
    return draw_post("positive", 256, np.random.default_rng(3)), TEXT


def read_upload(upload: Any) -> Any:
    """Decode an uploaded file with the same checks as the files of a data set."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "the file"
        path.write_bytes(upload.getvalue())
        try:
            return read_image(path)
        except BadFileError as error:
            st.error(f"{upload.name}: {error}")
            return None


def choose(name: str, kind: str, severity: float) -> None:
    """Set the controls of a modality as its button says."""
    st.session_state[f"{name} removed"] = not kind
    st.session_state[f"{name} severity"] = severity
    if kind:
        st.session_state[f"{name} kind"] = kind


def damage(name: str, kinds: tuple[str, ...], buttons: Any) -> tuple[str, float] | None:
    """Let the user damage or remove a modality; return kind and severity, None if removed."""
    for column, (label, kind, severity) in zip(st.columns(len(buttons)), buttons, strict=True):
        key = f"{name} {label}"
        column.button(label, key=key, on_click=choose, args=(name, kind, severity))
    if st.toggle(f"Remove the {name}", key=f"{name} removed"):
        return None
    kind = st.selectbox(f"Damage to the {name}", kinds, key=f"{name} kind")
    severity = st.slider(
        f"Severity of the {name} damage", 0.0, 1.0, step=0.05, key=f"{name} severity"
    )
    return str(kind), severity


def ask_image(predictor: Predictor, example: Any) -> Any:
    """Let the user choose, damage or remove the image."""
    st.subheader("Image")
    upload = st.file_uploader("Upload an image", ["jpg", "jpeg", "png", "webp", "gif"])
    chosen = damage("image", get_args(ImageKind), IMAGE_BUTTONS)
    image = example if upload is None else read_upload(upload)
    if chosen is None or image is None:
        return None
    kind, severity = chosen
    image = predictor.encoders["image"].resize(image)
    if severity:
        image = ImageCorruption(kind=kind, severity=severity)(
            image, sample_generator(0, "demo", "image")
        )
    st.image(image, caption="What the model sees", width=256)
    return image


def ask_text(predictor: Predictor, example: str) -> str | None:
    """Let the user write, damage or remove the text."""
    st.subheader("Text")
    text = st.text_area("Write a text", example, max_chars=1000).strip()
    chosen = damage("text", get_args(TextKind), TEXT_BUTTONS)
    if chosen is None:
        return None
    kind, severity = chosen
    if text and severity:
        mask = predictor.encoders["text"].mask_token
        text = TextCorruption(kind=kind, severity=severity, mask_token=mask)(
            text, sample_generator(0, "demo", "text")
        )
    st.caption("What the model reads")
    st.code(text or "(nothing)", language=None, wrap_lines=True)
    return text or None


def bars(values: dict[str, float]) -> None:
    """Show named shares as bars."""
    for name, value in values.items():
        st.progress(min(max(value, 0.0), 1.0), text=f"{name}: {value:.0%}")


def show_prediction(predictor: Predictor, image: Any, text: str | None) -> None:
    """Show the prediction for a post, its alarms and the weights."""
    st.subheader("Prediction")
    if image is None and text is None:
        st.warning("Neither image nor text: there is nothing to predict from.")
        return
    output = predictor([image], [text])
    probabilities = output.logits.softmax(1)[0].tolist()
    scores = dict(zip(predictor.class_names, probabilities, strict=True))
    st.metric("Sentiment", max(scores, key=lambda name: scores[name]))
    bars(scores)
    st.subheader("Does it look intact?")
    present = {"image": image is not None, "text": text is not None}
    for name, p_value in predictor.p_values(output).items():
        if not present[name]:
            st.text(f"The {name} is missing")
            continue
        p = float(p_value[0])
        bars({f"Share of intact {name}s at least as unusual (p-value)": p})
        if p <= ALARM_RATE:
            st.warning(f"Alarm: the {name} is unlike those of the validation posts.")
        else:
            st.success(f"The {name} looks intact.")
    st.subheader("Weights")
    weights = output.weights[0] / output.weights[0].sum().clamp_min(1e-12)
    names = [" and ".join(modalities) + " trusted" for modalities in predictor.candidates]
    bars(dict(zip(names, weights.tolist(), strict=True)))


def page(run: str) -> None:
    """Build the page."""
    st.set_page_config("robustfusion", layout="wide")
    st.title("What if the image is damaged, or the text is missing?")
    try:
        predictor = load(run)
    except Exception as error:
        st.error(str(error))
        return
    if predictor.generated:
        st.caption(
            "This model was trained on generated posts: drawn images and simple sentences. "
            "It flags real posts as unusual, which is expected."
        )
    picture, words = example_post(run)
    left, middle, right = st.columns(3, gap="large")
    with left:
        image = ask_image(predictor, picture)
    with middle:
        text = ask_text(predictor, words)
    with right:
        show_prediction(predictor, image, text)


def main() -> None:
    """Start the server; when the server runs this file, build the page."""
    if len(sys.argv) < 2:
        sys.exit(f"usage: python {sys.argv[0]} RUN [options of streamlit run]")
    if runtime.exists():
        page(sys.argv[1])
        return
    from streamlit.web import cli

    run, *options = sys.argv[1:]
    if not Path(run).is_dir():
        sys.exit(f"error: {run} is not the folder of a run: create one with drf_mvsa.py")
    sys.argv = ["streamlit", "run", __file__, *FLAGS, *options, "--", run]
    cli.main()


if __name__ == "__main__":
    main()
