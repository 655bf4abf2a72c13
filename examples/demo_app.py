"""Drop a picture and a text, disrupt either, and watch prediction, alarm and weights.

    python examples/demo_app.py runs/drf_mvsa-001

opens a page in your browser, with the DRF model of a run of drf_mvsa.py. Everything stays on your
machine: the page loads nothing from elsewhere and reports nothing. Needs
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

    from robustfusion.datasets.reading import BadFileError, read_image
    from robustfusion.disruption import ImageCorruption, TextCorruption, sample_generator
    from robustfusion.disruption.images import ImageKind
    from robustfusion.disruption.texts import TextKind
except ImportError as error:
    sys.exit(f'{error}. The demo needs: pip install "robustfusion[examples,demo]"')

FLAGS = (
    "--server.address=127.0.0.1",  # or it would listen everywhere, and look its own address up
    "--browser.gatherUsageStats=false",
    "--client.toolbarMode=minimal",
    "--server.maxUploadSize=20",
)
EXAMPLE = "So the garden was lovely this morning, we went to the market"  # as made-up posts talk
ALARM_RATE = 0.05  # so many of the intact ones alarm by chance


@st.cache_resource(show_spinner="Loading the model ...")
def load(run: str) -> Predictor:
    """Load the model once for all visitors."""
    return Predictor(Path(run))


@st.cache_data
def example_picture() -> Any:
    """Draw what stands there until a picture is dropped."""
    return draw_post("positive", 256, np.random.default_rng(3))


def read_upload(upload: Any) -> Any:
    """Decode a dropped file with the same distrust as files of a data set."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "the file"
        path.write_bytes(upload.getvalue())
        try:
            return read_image(path)
        except BadFileError as error:
            st.error(f"{upload.name}: {error}")
            return None


def ask_image(predictor: Predictor) -> Any:
    """Let the visitor choose, disrupt or leave out a picture."""
    st.subheader("Image")
    upload = st.file_uploader("Drop a picture", ["jpg", "jpeg", "png", "webp", "gif"])
    if st.toggle("Leave the image out"):
        return None
    image = example_picture() if upload is None else read_upload(upload)
    kind = st.selectbox("Disruption of the image", get_args(ImageKind))
    severity = st.slider("Severity for the image", 0.0, 1.0, 0.0, 0.05)
    if image is None:
        return None
    image = predictor.encoders["image"].resize(image)
    if severity:
        image = ImageCorruption(kind=kind, severity=severity)(
            image, sample_generator(0, "demo", "image")
        )
    st.image(image, caption="What the model sees", width=256)
    return image


def ask_text(predictor: Predictor) -> str | None:
    """Let the visitor write, disrupt or leave out a text."""
    st.subheader("Text")
    text = st.text_area("Write a text", EXAMPLE, max_chars=1000).strip()
    if st.toggle("Leave the text out"):
        return None
    kind = st.selectbox("Disruption of the text", get_args(TextKind))
    severity = st.slider("Severity for the text", 0.0, 1.0, 0.0, 0.05)
    if text and severity:
        mask = predictor.encoders["text"].mask_token
        text = TextCorruption(kind=kind, severity=severity, mask_token=mask)(
            text, sample_generator(0, "demo", "text")
        )
    st.caption("What the model reads")
    st.code(text or "(nothing)", language=None, wrap_lines=True)
    return text or None


def bars(values: dict[str, float]) -> None:
    """Show shares as bars with their names."""
    for name, value in values.items():
        st.progress(min(max(value, 0.0), 1.0), text=f"{name}: {value:.0%}")


def show(predictor: Predictor, image: Any, text: str | None) -> None:
    """Show what the model makes of a post."""
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
    there = {"image": image is not None, "text": text is not None}
    for name, p_value in predictor.p_values(output).items():
        if not there[name]:
            st.text(f"The {name} is missing")
            continue
        p = float(p_value[0])
        bars({f"Intact {name}s that look as odd (p-value)": p})
        if p <= ALARM_RATE:
            st.warning(f"Alarm: the {name} is unlike those the model knows.")
        else:
            st.success(f"The {name} looks intact.")
    st.subheader("Weights")
    weights = output.weights[0] / output.weights[0].sum().clamp_min(1e-12)
    names = [" and ".join(members) + " trusted" for members in predictor.candidates]
    bars(dict(zip(names, weights.tolist(), strict=True)))


def page(run: str) -> None:
    """Lay the page out."""
    st.set_page_config("robustfusion", layout="wide")
    st.title("What if the image is poor, or the text is gone?")
    try:
        predictor = load(run)
    except Exception as error:
        st.error(str(error))
        return
    if predictor.made_up:
        st.caption(
            "This model was trained on made-up posts: drawn pictures and simple sentences. "
            "To it real ones look strange, as they should."
        )
    left, middle, right = st.columns(3, gap="large")
    with left:
        image = ask_image(predictor)
    with middle:
        text = ask_text(predictor)
    with right:
        show(predictor, image, text)


def main() -> None:
    """Start the server, or draw the page if it is the server that asks."""
    if len(sys.argv) < 2:
        sys.exit(f"usage: python {sys.argv[0]} RUN [options of streamlit run]")
    if runtime.exists():
        page(sys.argv[1])
        return
    from streamlit.web import cli

    run, *options = sys.argv[1:]
    if not Path(run).is_dir():
        sys.exit(f"error: {run} is not the folder of a run: make one with drf_mvsa.py")
    sys.argv = ["streamlit", "run", __file__, *FLAGS, *options, "--", run]
    cli.main()


if __name__ == "__main__":
    main()
