"""Checkpoints of `transformers`: the same logits, and the same bytes when they are written back."""

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from make_hf_golden import CHECKPOINTS, inputs, logits_of, make
from safetensors.numpy import load_file, save_file

from gr.models import (
    DecoderOnly,
    DecoderOnlyConfig,
    EncoderDecoder,
    ModelError,
    Prompt,
    load_hf,
    save_hf,
)
from gr.models.lora import named_parameters

pytestmark = pytest.mark.usefixtures("compile_in_haste")

FOLDER = Path(__file__).parent / "hf"


def tensors_of(folder):
    return {
        n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()
    }


def our_logits(folder, tokens, lengths, targets):
    """As `logits_of`, and those of the targets step by step."""
    model = load_hf(folder, code_length=targets.shape[1])
    prompt = Prompt(jnp.asarray(tokens), jnp.asarray(lengths))
    forced = jax.jit(lambda model: model.target_logits(prompt, targets))(model)

    @jax.jit
    def decode(model):
        logits, _, cache = model.prefill(prompt)
        found = [logits]
        for column in targets.T[:-1]:
            logits, _, cache = model.step(jnp.asarray(column)[:, None], cache)
            found.append(logits[:, 0])
        return jnp.stack(found, axis=1)

    np.testing.assert_allclose(decode(model), forced, atol=1e-4)
    if isinstance(model, EncoderDecoder):
        return np.asarray(forced)
    every = jax.jit(lambda model: model.sequence_logits(tokens[:, :, None]))(model)[:, :, 0]
    at_end = np.asarray(forced)[:, 0], lengths - 1
    for row, (logits, place) in enumerate(zip(*at_end, strict=True)):
        if place < every.shape[1]:
            np.testing.assert_allclose(logits, every[row, place], atol=1e-4)
    return np.asarray(every)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_are_those_of_the_reference(name):
    golden = np.load(FOLDER / name / "golden.npz")
    found = our_logits(FOLDER / name, golden["tokens"], golden["lengths"], golden["targets"])
    expected = golden["logits"][:, : found.shape[1]]
    assert expected.std() > 0.3
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_are_those_of_transformers_where_it_is_installed(name, tmp_path):
    pytest.importorskip("transformers", reason="compares with transformers: pip install -e '.[hf]'")
    model = make(name, tmp_path, seed=1)
    given = inputs(seed=1)
    found = our_logits(tmp_path, *given)
    np.testing.assert_allclose(found, logits_of(model, *given)[:, : found.shape[1]], atol=1e-4)
    # And back.
    save_hf(load_hf(tmp_path), tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(logits_of(again, *given), logits_of(model, *given))


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_read_is_written_back_to_the_byte(name, dtype, tmp_path):
    before = {n: t.astype(jnp.dtype(dtype)) for n, t in tensors_of(FOLDER / name).items()}
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copyfile(FOLDER / name / "config.json", folder / "config.json")
    save_file(before, folder / "model.safetensors")
    save_hf(load_hf(folder, param_dtype=dtype), tmp_path / "out", like=folder)
    after = tensors_of(tmp_path / "out")
    assert after.keys() == before.keys()
    for tensor, array in before.items():
        assert after[tensor].dtype == array.dtype
        assert after[tensor].tobytes() == array.tobytes(), tensor
    told, written = (
        json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "out")
    )
    known = {n: v for n, v in told.items() if n not in ("dtype", "transformers_version")}
    assert {n: written[n] for n in known} == known


@pytest.mark.parametrize("name", ["llama", "qwen2", "t5", "t5_gated"])
def test_semantic_ids_come_behind_the_text(name, tmp_path):
    golden = np.load(FOLDER / name / "golden.npz")
    plain = load_hf(FOLDER / name)
    model = load_hf(FOLDER / name, vocab_size=7, code_length=2)
    config = model.config
    assert (config.num_text_tokens, config.vocab_size, config.code_length) == (61, 7, 2)
    np.testing.assert_array_equal(model.text_embedding[...], plain.embedding[...])
    # What the new tokens' embeddings are does not matter to a prompt of text.
    prompt = Prompt(jnp.asarray(golden["tokens"]), jnp.asarray(golden["lengths"]))
    prefill = jax.jit(lambda model: model.prefill(prompt)[:2])
    (logits, hidden), (_, expected) = prefill(model), prefill(plain)
    assert logits.shape == (3, 7)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)

    save_hf(model, tmp_path)
    again = load_hf(tmp_path)
    assert again.config == config
    for ours, array in named_parameters(model).items():
        np.testing.assert_array_equal(named_parameters(again)[ours], array)
    whole = tensors_of(tmp_path)
    shapes = {n: t.shape for n, t in tensors_of(FOLDER / name).items()}
    assert {n: t.shape for n, t in whole.items()} == {
        n: (68, *s[1:]) if s[0] == 61 else s for n, s in shapes.items()
    }


def test_what_was_written_without_semantic_ids_can_be_given_some(tmp_path):
    save_hf(load_hf(FOLDER / "qwen2", code_length=3), tmp_path)
    again = load_hf(tmp_path, vocab_size=61).config  # All are semantic IDs.
    assert (again.num_text_tokens, again.vocab_size, again.code_length) == (0, 61, 3)
    grown = load_hf(tmp_path, vocab_size=7).config
    assert (grown.num_text_tokens, grown.vocab_size) == (61, 7)


def test_new_tokens_are_drawn_like_the_text():
    model = load_hf(FOLDER / "llama", vocab_size=4000, rngs=nnx.Rngs(3))
    text, new = np.asarray(model.text_embedding[...]), np.asarray(model.embedding[...])
    np.testing.assert_allclose(new.mean(0), text.mean(0), atol=0.05)
    np.testing.assert_allclose(new.std(0), text.std(0), rtol=0.05)
    assert len(np.unique(new, axis=0)) == 4000


def changed(tmp_path, tensors=lambda t: t, **fields):
    """The tiny Qwen2 with other tensors and settings."""
    data = json.loads((FOLDER / "qwen2/config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(data))
    save_file(tensors(tensors_of(FOLDER / "qwen2")), tmp_path / "model.safetensors")
    return tmp_path


def test_all_faults_of_the_tensors_are_told_at_once(tmp_path):
    def spoil(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 2), np.float32)
        return tensors | {"model.layers.7.more": np.zeros(1, np.float32)}

    with pytest.raises(ModelError) as error:
        load_hf(changed(tmp_path, spoil))
    assert "missing: model.norm.weight;" in str(error.value)
    assert "surplus: model.layers.7.more;" in str(error.value)
    assert "of another shape: model.layers.0.mlp.up_proj.weight [3, 2] instead of [24, 16]" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "gpt2"},
            "model_type='gpt2' is not offered: use a checkpoint of llama, qwen2",
        ),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not offered, only 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not offered"),
        ({"layer_types": ["sliding_attention"]}, "not all full_attention"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "rope.scaling='yarn' is not offered",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor"),
        ({"quantization_config": {}}, "is quantised"),
    ],
)
def test_settings_that_are_not_computed_are_refused(fields, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        load_hf(changed(tmp_path, **fields))


def test_older_files_give_rope_otherwise(tmp_path):
    old = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    rope = load_hf(changed(tmp_path, rope_parameters=None, **old)).config.rope
    assert (rope.base, rope.scaling, rope.factor) == (500.0, "linear", 2.0)


def test_a_folder_without_its_files_is_told(tmp_path):
    with pytest.raises(ModelError, match="config.json: no such file"):
        load_hf(tmp_path)
    shutil.copytree(FOLDER / "qwen2", tmp_path / "in")
    (tmp_path / "in/model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks model-00002-of-00004.safetensors"):
        load_hf(tmp_path / "in")
    (tmp_path / "in/model-00002-of-00004.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="is no safetensors file"):
        load_hf(tmp_path / "in")


def test_options_that_do_not_fit_the_checkpoint_are_refused(tmp_path):
    save_hf(load_hf(FOLDER / "qwen2", vocab_size=7, code_length=2), tmp_path)
    with pytest.raises(ModelError, match="has 7 semantic-ID tokens, and vocab_size=9 is asked for"):
        load_hf(tmp_path, vocab_size=9)
    with pytest.raises(ModelError, match="weights='none' is unknown"):
        load_hf(tmp_path, weights="none")


def test_an_untied_t5_is_that_of_version_1_1(tmp_path):
    """Of which the installed `transformers` makes none: it ties every head."""
    data = json.loads((FOLDER / "t5_gated/config.json").read_text())
    del data["scale_decoder_outputs"]  # Unknown to the releases that wrote such files.
    (tmp_path / "config.json").write_text(json.dumps(data | {"tie_word_embeddings": False}))
    tensors = tensors_of(FOLDER / "t5_gated")
    with pytest.raises(ModelError, match="missing: lm_head.weight"):
        save_file(tensors, tmp_path / "model.safetensors")
        load_hf(tmp_path)
    save_file(
        tensors | {"lm_head.weight": tensors["shared.weight"]}, tmp_path / "model.safetensors"
    )
    model, tied = load_hf(tmp_path), load_hf(FOLDER / "t5_gated")
    assert (tied.config.tied_head, tied.config.scaled_head) == (True, False)
    assert (model.config.tied_head, model.config.scaled_head) == (False, False)
    states = jnp.ones((1, 16))
    np.testing.assert_allclose(model.logits(states), tied.logits(states), rtol=1e-5)


def test_a_tensor_that_is_there_twice_is_read_once(tmp_path):
    def with_head(change):
        return lambda tensors: (
            tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + change}
        )

    again = load_hf(changed(tmp_path, with_head(0.0)))
    jax.tree.map(np.testing.assert_array_equal, again, load_hf(FOLDER / "qwen2"))
    with pytest.raises(ModelError, match="surplus: lm_head.weight"):  # A head that is not tied.
        load_hf(changed(tmp_path, with_head(1.0)))


def test_a_model_that_no_family_has_is_not_written(tmp_path):
    sizes = {"d_model": 8, "num_heads": 2, "d_ff": 8, "num_layers": 1}
    config = DecoderOnlyConfig(5, 2, **sizes, qkv_bias=True, qk_norm=True)
    with pytest.raises(ModelError, match="no family of llama, qwen2, qwen3, t5"):
        save_hf(DecoderOnly(config, rngs=nnx.Rngs(0)), tmp_path)


def test_a_model_without_weights_needs_the_settings_only(tmp_path):
    shutil.copyfile(FOLDER / "qwen3/config.json", tmp_path / "config.json")
    model = load_hf(tmp_path, weights="random", vocab_size=7)
    like = load_hf(FOLDER / "qwen3", vocab_size=7)
    assert {n: a.shape for n, a in named_parameters(model).items()} == {
        n: a.shape for n, a in named_parameters(like).items()
    }


def test_a_missing_package_is_named_when_reading_and_when_writing(tmp_path, monkeypatch):
    backbone = load_hf(FOLDER / "qwen2")
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda: load_hf(FOLDER / "qwen2"), lambda: save_hf(backbone, tmp_path)):
        with pytest.raises(ModelError, match=r"by the package `safetensors`: pip install"):
            call()
