"""Makes the golden files of tests/models/hf: tiny random checkpoints, and what `transformers` computes with them.

    pip install -e '.[hf]' && python tests/models/make_hf_golden.py

Each folder holds `config.json` and `*.safetensors`, as `transformers` writes them, and `golden.npz` with tokens and
logits. They are in the repository; run this only for a new family.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "hf"
VOCAB, LENGTH = 61, 12
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
T5 = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
# Name -> model type, settings, bytes of a shard.
CHECKPOINTS = {
    "llama": ("llama", {**SIZES, "num_key_value_heads": 2, "rope_parameters": LLAMA3}, "1GB"),
    "llama_linear": ("llama", {**SIZES, "rms_norm_eps": 1e-3, "rope_parameters": LINEAR}, "1GB"),
    "qwen2": ("qwen2", {**SIZES, "num_key_value_heads": 1, "tie_word_embeddings": True}, "6KB"),
    "qwen3": ("qwen3", {**SIZES, "num_key_value_heads": 2, "head_dim": 6}, "1GB"),
    "t5": ("t5", {**T5, "tie_word_embeddings": True}, "1GB"),
    "t5_gated": (
        "t5",
        {
            **T5,
            "feed_forward_proj": "gated-gelu",
            "num_decoder_layers": 1,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 10,
            "tie_word_embeddings": False,
        },
        "1GB",
    ),
}


def make(name, folder, seed=0):
    """Writes a random checkpoint of `transformers` into a folder, and returns its model."""
    import torch
    import transformers

    kind, settings, shard = CHECKPOINTS[name]
    config = transformers.AutoConfig.for_model(kind, **settings)
    auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    model = auto.from_config(config).float().eval()
    with torch.no_grad():
        for of, parameter in model.named_parameters():
            # Larger than at initialisation, so that every part of the model counts.
            scale = 0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, scale).add_(float("norm" in of))
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def inputs(seed=0):
    """Tokens `[3, P]` and lengths, and tokens `[3, L]` behind them."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(2, VOCAB, (3, LENGTH)),
        np.array([LENGTH, 5, 9]),
        rng.integers(2, VOCAB, (3, 4)),
    )


def logits_of(model, tokens, lengths, targets):
    """Logits of every token but the first (decoder-only), or of the targets (encoder-decoder)."""
    import torch

    real = torch.tensor(np.arange(tokens.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = np.full((len(targets), 1), 0)  # The token of padding.
            given = torch.tensor(np.concatenate([start, targets[:, :-1]], axis=1))
            output = model(torch.tensor(tokens), attention_mask=real, decoder_input_ids=given)
        else:
            output = model(torch.tensor(tokens))  # Causal: what is behind a token does not matter.
    return output.logits.numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CHECKPOINTS))
    for name in parser.parse_args().names:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        model = make(name, FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
        tokens, lengths, targets = inputs()
        logits = logits_of(model, tokens, lengths, targets)
        np.savez_compressed(
            FOLDER / name / "golden.npz",
            tokens=tokens,
            lengths=lengths,
            targets=targets,
            logits=logits,
        )


if __name__ == "__main__":
    main()
