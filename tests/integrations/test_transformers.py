"""Tiny random models of transformers as encoders, and batches with missing images and texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustfusion import DRFClassifier, DRFHead
from robustfusion.integrations.transformers import TransformersCollate, TransformersEncoder
from robustfusion.testing import assert_batch_invariant

transformers: Any = pytest.importorskip("transformers")
Image: Any = pytest.importorskip("PIL.Image")

SIZE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_bert(**options: Any) -> Any:
    config = transformers.BertConfig(vocab_size=40, **SIZE)
    return transformers.BertModel(config, **options).eval()


def make_vit(**options: Any) -> Any:
    config = transformers.ViTConfig(image_size=32, patch_size=16, **SIZE)
    return transformers.ViTModel(config, **options).eval()


def make_clip() -> Any:
    text = transformers.CLIPTextConfig(
        vocab_size=40, bos_token_id=2, eos_token_id=3, projection_dim=8, **SIZE
    )
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=8, **SIZE)
    return text, vision


def make_resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"
    )
    return transformers.ResNetModel(config).eval()


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    words = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(words))
    return transformers.BertTokenizerFast(str(path))


@pytest.fixture
def image_processor() -> Any:
    cls = getattr(transformers, "ViTImageProcessorPil", transformers.ViTImageProcessor)
    return cls(size={"height": 32, "width": 32})


def tokens() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[2, 7, 8, 9, 3], [2, 11, 3, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }


@torch.no_grad()
def test_pooling_of_a_text_model_is_what_its_name_says() -> None:
    model, given = make_bert(), tokens()
    output = model(**given)
    cls, mean, pooler = (
        TransformersEncoder(model, pooling=name)(given) for name in ("cls", "mean", "pooler")
    )
    assert torch.equal(cls, output.last_hidden_state[:, 0])
    assert torch.equal(pooler, output.pooler_output)
    for row, length in enumerate((5, 3)):
        expected = output.last_hidden_state[row, :length].mean(0)
        assert torch.allclose(mean[row], expected, atol=1e-6)


@torch.no_grad()
def test_pooling_of_a_vision_model_and_of_a_feature_map() -> None:
    images = torch.randn(2, 3, 32, 32)
    vit = make_vit()
    states = vit(images).last_hidden_state
    assert torch.equal(TransformersEncoder(vit, pooling="cls")(images), states[:, 0])
    mean = TransformersEncoder(vit, pooling="mean")({"pixel_values": images})
    assert torch.allclose(mean, states.mean(1))
    resnet = make_resnet()
    output = resnet(images)
    for pooling in ("mean", "pooler"):
        encoder = TransformersEncoder(resnet, pooling=pooling)
        assert encoder.dim == 12
        assert torch.allclose(encoder(images), output.last_hidden_state.mean((2, 3)), atol=1e-6)


@torch.no_grad()
def test_clip_towers_and_projections() -> None:
    text, vision = make_clip()
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8
    )
    clip, images, given = (
        transformers.CLIPModel(config).eval(),
        torch.randn(2, 3, 32, 32),
        tokens(),
    )
    with pytest.raises(TypeError, match=r"model\.vision_model and of model\.text_model"):
        TransformersEncoder(clip, pooling="pooler")
    seen = TransformersEncoder(clip.vision_model, pooling="pooler")(images)
    read = TransformersEncoder(clip.text_model, pooling="pooler")(given)
    assert torch.equal(seen, clip.vision_model(images).pooler_output)
    # The text tower's vector is that of the end token: 4 and 2 are its places.
    states = clip.text_model(**given).last_hidden_state
    assert torch.equal(read, states[torch.arange(2), torch.tensor([4, 2])])
    for made, value, field in (
        (transformers.CLIPVisionModelWithProjection(vision), images, "image_embeds"),
        (transformers.CLIPTextModelWithProjection(text), given, "text_embeds"),
    ):
        encoder = TransformersEncoder(made.eval(), pooling="projection")
        kwargs = value if isinstance(value, dict) else {"pixel_values": value}
        assert encoder.dim == 8
        assert torch.equal(encoder(value), getattr(made(**kwargs), field))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="pooling must be in"):
        TransformersEncoder(make_bert(), pooling="max")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a model of transformers, got Linear"):
        TransformersEncoder(nn.Linear(2, 2), pooling="cls")
    with pytest.raises(ValueError, match="no first token"):
        TransformersEncoder(make_resnet(), pooling="cls")(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="BertModel returns no pooler_output"):
        TransformersEncoder(make_bert(add_pooling_layer=False), pooling="pooler")(tokens())
    with pytest.raises(ValueError, match="BertConfig has no projection_dim"):
        TransformersEncoder(make_bert(), pooling="projection")
    with pytest.raises(ValueError, match="must give"):
        TransformersEncoder(make_bert(), pooling="cls", dim=7)(tokens())


def test_a_width_that_the_config_does_not_tell_is_given() -> None:
    model = transformers.MobileNetV2Model(
        transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.1, min_depth=8)
    ).eval()
    with pytest.raises(ValueError, match="needs: give dim="):
        TransformersEncoder(model, pooling="pooler")
    encoder = TransformersEncoder(model, pooling="pooler", dim=1280)
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 1280)


def samples(generator: np.random.Generator) -> list[dict[str, Any]]:
    picture = Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    return [
        {"inputs": {"image": picture, "text": "a b c d"}, "label": 0, "id": "whole"},
        {"inputs": {"image": None, "text": "e f"}, "label": 1, "id": "no image"},
        {"inputs": {"image": picture.convert("L"), "text": None}, "label": 2, "id": "no text"},
        {"inputs": {"image": picture.convert("P"), "text": " \n"}, "label": 0, "id": "blank"},
        {
            "inputs": {"image": picture, "text": "secret"},
            "available": {"image": True, "text": False},
            "label": 1,
            "id": "said so",
        },
    ]


def test_collate_makes_masks_and_placeholders(tokenizer: Any, image_processor: Any) -> None:
    posts = samples(np.random.default_rng(0))
    batch = TransformersCollate({"image": image_processor, "text": tokenizer})(posts)
    assert batch["available"]["image"].tolist() == [True, False, True, True, True]
    assert batch["available"]["text"].tolist() == [True, True, False, False, False]
    assert batch["label"].tolist() == [0, 1, 2, 0, 1]
    assert batch["id"][1] == "no image"
    ids, mask = (batch["inputs"]["text"][key] for key in ("input_ids", "attention_mask"))
    for row in (2, 3, 4):
        assert ids[row][mask[row].bool()].tolist() == [2, 4, 3]  # [CLS] [MASK] [SEP]
    alone = tokenizer(["e f"], return_tensors="pt")["input_ids"][0]
    assert ids[1][mask[1].bool()].tolist() == alone.tolist()
    pixels = batch["inputs"]["image"]["pixel_values"]
    direct = image_processor([posts[0]["inputs"]["image"]], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels[0], direct[0])
    assert bool((pixels[1] == pixels[1].flatten()[0]).all())


def test_collate_takes_empty_cells_and_missing_pictures_among_tensors(
    tokenizer: Any, image_processor: Any
) -> None:
    picture = torch.zeros(3, 40, 50, dtype=torch.uint8)
    posts: list[dict[str, Any]] = [
        {"inputs": {"image": picture, "text": "a"}},
        {"inputs": {"image": None, "text": float("nan")}},  # NaN is pandas' empty cell
    ]
    batch = TransformersCollate({"image": image_processor, "text": tokenizer})(posts)
    assert batch["inputs"]["image"]["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["available"]["image"].tolist() == [True, False]
    assert batch["available"]["text"].tolist() == [True, False]
    other = TransformersCollate({"text": tokenizer})(posts)
    assert other["inputs"]["image"].shape == (2, 3, 40, 50)
    assert other["available"]["image"].tolist() == [True, False]


def test_collate_cuts_long_texts_and_takes_other_modalities(tokenizer: Any) -> None:
    posts = [
        {"inputs": {"text": "a " * 50, "table": torch.tensor([float(row), 1.0])}, "label": row}
        for row in range(3)
    ]
    batch = TransformersCollate({"text": tokenizer}, max_length=7)(posts)
    assert batch["inputs"]["text"]["input_ids"].shape == (3, 7)
    assert batch["inputs"]["table"][:, 0].tolist() == [0.0, 1.0, 2.0]
    assert bool(batch["available"]["table"].all())
    titled = TransformersCollate({"title": tokenizer, "text": tokenizer})(posts)
    assert not titled["available"]["title"].any()


def test_collate_refuses_what_is_no_processor(tokenizer: Any, image_processor: Any) -> None:
    with pytest.raises(TypeError, match="must be a tokenizer, an image processor or a function"):
        TransformersCollate({"text": "bert-base-uncased"})
    both = transformers.CLIPProcessor.__new__(transformers.CLIPProcessor)
    with pytest.raises(TypeError, match=r"its \.tokenizer to the text"):
        TransformersCollate({"text": both})


class Transform:
    """What timm, torchvision and open_clip return: a Pillow image in, a tensor out."""

    def __init__(self, side: int = 8) -> None:
        self.side = side

    def __call__(self, image: Any) -> torch.Tensor:
        assert image.mode == "RGB"
        pixels = np.asarray(image.resize((self.side, self.side)), np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)


def words(text: str) -> torch.Tensor:
    """As open_clip's tokenizer has it, ``tokenizer(text)[0]``: always 77 ids."""
    return torch.tensor([*map(ord, text[:77]), *[0] * (77 - len(text[:77]))])


def test_any_function_prepares_an_input(tokenizer: Any) -> None:
    posts = samples(np.random.default_rng(0))
    del posts[1]["inputs"]["image"]  # an absent key is as good as None
    for processor in (tokenizer, words):
        batch = TransformersCollate({"image": Transform(), "text": processor})(posts)
        assert batch["available"]["image"].tolist() == [True, False, True, True, True]
        assert batch["available"]["text"].tolist() == [True, True, False, False, False]
        pixels = batch["inputs"]["image"]
        assert pixels.shape == (5, 3, 8, 8)
        assert torch.equal(pixels[0], Transform()(posts[0]["inputs"]["image"]))
        assert not pixels[1].any()
    assert batch["inputs"]["text"].shape == (5, 77)
    assert not batch["inputs"]["text"][2:].any()


def test_a_function_may_return_a_mapping() -> None:
    def tokens_of(text: str) -> dict[str, torch.Tensor]:
        ids = words(text)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    batch = TransformersCollate({"text": tokens_of})([{"inputs": {"text": t}} for t in ("ab", "")])
    mask = batch["inputs"]["text"]["attention_mask"]
    assert mask.sum(1).tolist() == [2, 1]  # no text attends to nothing


def test_a_batch_in_which_a_modality_is_missing_altogether() -> None:
    make_batch = TransformersCollate({"image": Transform()})
    gone: list[dict[str, Any]] = [{"inputs": {"image": None, "text": "a"}}] * 2
    with pytest.raises(ValueError, match=r'pass one row .* in placeholders\["image"\]'):
        make_batch(gone)
    given = TransformersCollate(
        {"image": Transform()}, placeholders={"image": torch.ones(3, 8, 8)}
    )
    for batch in (given(gone), given(gone)):
        assert batch["inputs"]["image"].shape == (2, 3, 8, 8)
        assert not batch["inputs"]["image"].any()  # for its shape alone
        assert not batch["available"]["image"].any()
    make_batch(samples(np.random.default_rng(0))[:2])
    assert make_batch(gone)["inputs"]["image"].shape == (2, 3, 8, 8)


def test_modalities_without_a_processor_have_placeholders_too() -> None:
    rows: list[dict[str, Any]] = [
        {"inputs": {"audio": torch.ones(5), "table": {"x": torch.ones(2)}, "note": "a"}},
        {"inputs": {"audio": None, "note": "b"}},
        {"inputs": {"table": {"x": torch.ones(2)}, "note": None}, "available": {"table": False}},
    ]
    batch = TransformersCollate({})(rows)
    assert batch["available"]["audio"].tolist() == [True, False, False]
    assert batch["available"]["table"].tolist() == [True, False, False]
    assert batch["available"]["note"].tolist() == [True, True, False]
    assert batch["inputs"]["audio"].sum(1).tolist() == [5, 0, 0]
    assert batch["inputs"]["table"]["x"].shape == (3, 2)
    assert batch["inputs"]["note"] == ["a", "b", ""]


def test_a_vit_and_a_bert_train_with_missing_rows(tokenizer: Any, image_processor: Any) -> None:
    batch = TransformersCollate({"image": image_processor, "text": tokenizer})(
        samples(np.random.default_rng(0))
    )
    encoders = {
        "image": TransformersEncoder(make_vit(), pooling="cls"),
        "text": TransformersEncoder(make_bert(), pooling="mean"),
    }
    dims = {name: encoder.dim for name, encoder in encoders.items()}
    model = DRFClassifier(encoders, DRFHead(dims, num_classes=3))
    model.train()
    for _ in range(2):
        output = model(batch["inputs"], batch["available"])
        loss: Any = model.loss(output, batch["label"])
        loss.backward()
    assert torch.isfinite(loss)
    gradients = [p.grad for p in model.encoders.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients)
    # Nothing of a placeholder reaches a prediction: other placeholders, the same logits.
    model.eval()
    before = model(batch["inputs"], batch["available"]).logits
    batch["inputs"]["image"]["pixel_values"][1] = 5.0
    batch["inputs"]["text"]["input_ids"][2:, 1] = 9
    after = model(batch["inputs"], batch["available"]).logits
    assert torch.allclose(before, after, atol=1e-6)


TEXTS = ["a", "b c d e f g h i", "k l", "m n o p q r s t u v w"]


def make_tower(kind: str) -> tuple[Any, str]:
    """Build a text tower as checkpoints of this kind are, with the pooling they are used with."""
    torch.manual_seed(0)
    if kind == "siglip":
        config = transformers.SiglipTextConfig(vocab_size=40, max_position_embeddings=16, **SIZE)
        return transformers.SiglipTextModel(config).eval(), "pooler"
    if kind == "clip":
        return transformers.CLIPTextModel(make_clip()[0]).eval(), "pooler"
    if kind == "e5":
        config = transformers.XLMRobertaConfig(vocab_size=40, pad_token_id=0, **SIZE)
        return transformers.XLMRobertaModel(config).eval(), "mean"
    config = transformers.Qwen2Config(vocab_size=40, num_key_value_heads=2, **SIZE)
    return transformers.Qwen2Model(config).eval(), "last"


def encode_texts(kind: str, tokenizer: Any, **options: Any) -> Any:
    model, pooling = make_tower(kind)
    encoder = TransformersEncoder(model, pooling=pooling)  # type: ignore[arg-type]
    make_batch = TransformersCollate({"text": tokenizer}, max_length=16, **options)

    def encode(texts: list[str]) -> torch.Tensor:
        batch = make_batch([{"inputs": {"text": text}} for text in texts])
        result: torch.Tensor = encoder(batch["inputs"]["text"])
        return result

    return encode


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["siglip", "clip", "e5", "qwen"])
def test_the_vector_of_a_text_does_not_depend_on_its_batch(
    tokenizer: Any, kind: str, side: str
) -> None:
    if side == "left" and kind in ("siglip", "clip"):
        pytest.skip("these are trained with padding on the right")
    tokenizer.padding_side = side
    if kind == "siglip":  # its tokenizer returns no attention mask
        tokenizer.model_input_names = ["input_ids"]
        with pytest.raises(AssertionError, match="depends on its batch"):
            assert_batch_invariant(encode_texts(kind, tokenizer, padding=True), TEXTS)
    assert_batch_invariant(encode_texts(kind, tokenizer), TEXTS)
    for padding in ("max_length", {"text": "max_length"}):
        assert_batch_invariant(encode_texts(kind, tokenizer, padding=padding), TEXTS)


def test_the_padding_of_a_tokenizer_is_its_own(tokenizer: Any) -> None:
    posts = [{"inputs": {"text": text}} for text in ("a", "b c d")]

    def shape(**options: Any) -> tuple[int, ...]:
        batch = TransformersCollate({"text": tokenizer}, max_length=9, **options)(posts)
        return tuple(batch["inputs"]["text"]["input_ids"].shape)

    assert shape() == (2, 5)
    assert shape(padding="max_length") == (2, 9)
    tokenizer.init_kwargs["processor_class"] = "SiglipProcessor"
    assert shape() == (2, 9)
    assert shape(padding=True) == shape(padding={"text": "longest"}) == (2, 5)
    tokenizer.model_max_length = 7
    assert shape() == (2, 7)
    tokenizer.padding_side = "left"
    batch = TransformersCollate({"text": tokenizer}, padding=True)(posts)
    assert batch["inputs"]["text"]["attention_mask"][0].tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="padding of text must be True, 'longest'"):
        TransformersCollate({"text": tokenizer}, padding={"text": "left"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="padding has the key 'txt'"):
        TransformersCollate({"text": tokenizer}, padding={"txt": True})
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="has no padding token"):
        TransformersCollate({"text": tokenizer})


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_is_the_last_that_is_not_padding(side: str) -> None:
    model, _ = make_tower("qwen")
    encoder = TransformersEncoder(model, pooling="last")
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    if side == "left":
        ids[1], mask[1] = ids[1].roll(2), mask[1].roll(2)
    with torch.no_grad():
        vectors = encoder({"input_ids": ids, "attention_mask": mask})
        alone = encoder({"input_ids": torch.tensor([[2, 11, 3]])})
    torch.testing.assert_close(vectors[1:], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no last token"):
        TransformersEncoder(make_resnet(), pooling="last")(torch.randn(1, 3, 32, 32))


def test_the_first_token_of_a_causal_model_is_refused() -> None:
    for model in (make_tower("qwen")[0], make_tower("clip")[0]):
        with pytest.raises(ValueError, match="is causal: its first token"):
            TransformersEncoder(model, pooling="cls")


def test_another_encoder_is_refused_by_name() -> None:
    mean, cls = (TransformersEncoder(make_bert(), pooling=p) for p in ("mean", "cls"))
    mean.load_state_dict(TransformersEncoder(make_bert(), pooling="mean").state_dict())
    with pytest.raises(ValueError, match='its pooling is "cls", that of this one is "mean"'):
        mean.load_state_dict(cls.state_dict())


def test_half_an_emoji_reaches_no_tokenizer(tokenizer: Any) -> None:
    posts = [{"inputs": {"text": text}} for text in ("a \ud83d b", "a \ufffd b", "a\x00 b", "a b")]
    ids = TransformersCollate({"text": tokenizer})(posts)["inputs"]["text"]["input_ids"]
    assert torch.equal(ids[0], ids[1])
    assert torch.equal(ids[2], ids[3])
