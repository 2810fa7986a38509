r"""MiniOneRec's form (Kong et al., arXiv 2510.24431): a Qwen2 reads a prompt with semantic IDs and writes the next one.

    python -m experiments.train --config=configs/minionerec_qwen2.py --workdir=runs/minionerec \
        --config.data_dir=FOLDER --config.data.path=CSVS --config.semantic_ids.path=NAME.index.json
    python -m experiments.evaluate --workdir=runs/minionerec --split=test
    python -m experiments.rl --config=configs/amazon_office_rl.py --workdir=runs/minionerec_rl \
        --config.init_from=runs/minionerec

FOLDER/CSVS holds `train.csv`, `valid.csv` and `test.csv`. As it stands the model is a tiny one with random weights.
With a checkpoint on disk, add `--config.backbone_options.folder=CHECKPOINT --config.backbone_options.tokenizer=""
--config.backbone_options.weights=read`, on an accelerator also `--config.backbone_options.dtype=bfloat16
--config.backbone_options.param_dtype=bfloat16`: docs/llm.md. It was not run on the published files, so that no number
is expected.
"""

from ml_collections import ConfigDict

from configs.base import base_config


def get_config() -> ConfigDict:
    """A tiny random Qwen2 with LoRA, on MiniOneRec's files."""
    c = base_config()
    c.name = "MiniOneRec, Qwen2"
    c.backbone = "gr.models:load_hf"
    c.backbone_options = ConfigDict(
        {
            "folder": "configs/checkpoints/qwen2_tiny",  # Relative to where the command runs.
            "weights": "random",
            "tokenizer": "configs/checkpoints/qwen2_tiny",  # "": that of the folder.
            "template": "gr.data.prompts:next_item",  # Or next_titled_item, with the items' titles.
            "lora_rank": 8,
            "dtype": "float32",  # Of activations.
            "param_dtype": "float32",  # Of what is frozen.
        }
    )
    c.data.format = "minionerec"
    c.data.max_history = 10
    c.data.num_buckets = 1

    c.training.level = "target"  # A prompt stands before one target.
    c.training.batch_size = 64
    c.training.num_epochs = 3
    c.training.learning_rate = 1e-3
    c.loss.name = "msl"  # The softmax is over the tokens that the trie has behind a prefix.
    return c
