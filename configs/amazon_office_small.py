r"""Amazon Office at a size that two CPU cores train to convergence: 64 wide, 2 + 2 layers, user level.

    python -m experiments.train --config=configs/amazon_office_small.py --workdir=runs/office_small \
        --config.data_dir=FOLDER
    python -m experiments.evaluate --workdir=runs/office_small --split=test --data_dir=FOLDER

Measured on two cores of an AMD EPYC, shared with other work: 40 epochs in 20 minutes. Test split, SID
level: Hit@10 .0677, NDCG@10 .0334 with all items allowed (published for TIGER with cross-entropy, at the reference
size: .0608, .0337), .0740, .0372 with seen items removed; a first-order Markov chain has .0760, .0474.
"""

from ml_collections import ConfigDict

from configs.amazon_office import get_config as reference_config


def get_config() -> ConfigDict:
    """Office, small."""
    c = shrink(reference_config())
    c.name = "Amazon Office, small"
    return c


def shrink(c: ConfigDict) -> ConfigDict:
    """An experiment of the reference size at the small size, and with the small size's schedule."""
    c.encoder_decoder.d_model = 64
    c.encoder_decoder.num_heads = 4
    c.encoder_decoder.head_dim = 16
    c.encoder_decoder.d_ff = 256
    c.encoder_decoder.num_encoder_layers = 2
    c.encoder_decoder.num_decoder_layers = 2
    c.encoder_decoder.dropout = 0.1
    c.decoder_only.d_model = 64
    c.decoder_only.num_heads = 2
    c.decoder_only.d_ff = 192
    c.decoder_only.num_layers = 4
    c.decoder_only.dropout = 0.1
    c.data.num_buckets = 3
    c.training.num_epochs = 40
    c.training.learning_rate = 3e-3
    c.training.eval_every_epochs = 4.0
    c.training.eval_users = 1024
    return c
