"""The fields every experiment has, with their defaults; a config file starts from these and changes a few."""

from ml_collections import ConfigDict, config_dict


def base_config() -> ConfigDict:
    """The default experiment: the encoder-decoder at its published reference size, cross-entropy."""
    c = ConfigDict()
    c.name = ""
    c.seed = 0
    c.backbone = "encoder_decoder"  # Or "decoder_only".

    # Data. `data_dir` is the folder that holds `data.path`; "" means the environment variable GR_DATA.
    c.data_dir = ""
    c.data = ConfigDict()
    c.data.format = ""  # See `gr.data.load_sequences`.
    c.data.path = ""
    c.data.options = (
        ConfigDict()
    )  # Of the reader, by name, such as k_core; to be named in the config file.
    c.data.skip_bad_rows = False  # Count and report bad rows instead of stopping at the first.
    c.data.split = "leave_one_out"  # Or "by_time".
    c.data.validation_share = 0.1  # Of all interactions, the last ones by time; for "by_time".
    c.data.test_share = 0.1
    c.data.max_history = 20  # Items.
    # Seconds; each epoch training interactions are put in order by time plus a random delay of up to so much.
    c.data.time_jitter = config_dict.placeholder(float)  # None: never; 0: those of one time.
    c.data.num_buckets = 5  # Padded lengths; each compiles once.

    # Semantic IDs: read from `path` (relative to the data folder), or built; see `make_semantic_ids`.
    c.semantic_ids = ConfigDict()
    c.semantic_ids.path = ""
    c.semantic_ids.item_ids = ""  # For a .npy file: a list of its rows' item ids, ...
    c.semantic_ids.order = ""  # ... or "items" where they are in the order of the data's items.
    c.semantic_ids.vectors = "both"
    c.semantic_ids.text_model = "tfidf"
    c.semantic_ids.dim = 64
    c.semantic_ids.num_levels = 3
    c.semantic_ids.codebook_size = 64
    c.semantic_ids.balanced = False
    c.semantic_ids.collision = "extra_code"
    c.semantic_ids.min_perplexity = 0.1
    c.semantic_ids.seed = 0

    # Backbones, at the reference sizes of docs/methods.md, section 3.
    c.encoder_decoder = ConfigDict()
    c.encoder_decoder.d_model = 128
    c.encoder_decoder.num_heads = 6
    c.encoder_decoder.head_dim = 64
    c.encoder_decoder.d_ff = 1024
    c.encoder_decoder.num_encoder_layers = 4
    c.encoder_decoder.num_decoder_layers = 4
    c.encoder_decoder.dropout = 0.1
    c.encoder_decoder.tied_head = False
    c.encoder_decoder.causal_encoder = True  # Needed by training.level = "user".
    c.encoder_decoder.recency_bias = True
    c.encoder_decoder.dtype = "float32"  # Or "bfloat16", of activations.
    c.decoder_only = ConfigDict()
    c.decoder_only.d_model = 128
    c.decoder_only.num_heads = 8
    c.decoder_only.d_ff = 1024
    c.decoder_only.num_layers = 8
    c.decoder_only.dropout = 0.1
    c.decoder_only.tied_head = False
    c.decoder_only.dtype = "float32"

    # Training.
    c.loss = ConfigDict()
    c.loss.name = "ce"  # Or "msl", "apao_pointwise", "apao_pairwise"; see `gr.training.LossConfig`.
    c.loss.tau = 1.0
    c.loss.beta = 0.3
    c.loss.eta = 1e-4
    c.loss.weights = "adaptive"
    c.loss.with_ce = True
    c.loss.num_negatives = 100
    c.loss.all_first_codes = False
    c.loss.pairwise_share = 0.0625
    c.training = ConfigDict()
    c.training.level = (
        "user"  # All positions of a sequence in one pass; or "target": one target an example.
    )
    # Workdir of a run whose best model and semantic IDs this one starts from; "": a fresh model.
    c.training.init_from = ""
    c.training.init_from_other_data = False  # Whether that run may have been trained on other data.
    c.training.batch_size = 128  # Examples in a batch, for level "target".
    c.training.items_per_batch = 512  # Item positions in a batch, for level "user".
    c.training.num_epochs = 30
    c.training.learning_rate = 1e-3
    c.training.schedule = "cosine"
    c.training.warmup_share = 0.02  # Of all optimiser updates.
    c.training.weight_decay = 0.01
    c.training.clip_norm = 1.0
    c.training.accumulation_steps = 1
    c.training.b2 = 0.999
    c.training.log_every = 20  # Steps.
    c.training.eval_every_epochs = 1.0
    c.training.eval_users = 2048  # Validation users decoded at each evaluation; 0 means all.
    c.training.checkpoint_every_epochs = 1.0
    c.training.monitor = "ndcg@10"  # Or "loss", of validation.
    c.training.patience = 10  # Evaluations without improvement.

    # Decoding and evaluation.
    c.decoding = ConfigDict()
    c.decoding.num_beams = 20
    c.decoding.batch_size = 128
    # What the model's distribution is: "vocabulary", or "children" (of a prefix in the trie), for a model trained so
    # (MSL, with temperature loss.tau). "trained": as loss.name and loss.tau say.
    c.decoding.normalise_over = "trained"
    # Items of the history are not recommended again. False where people take the same again, as in music and sessions:
    # such targets could never be hit.
    c.decoding.exclude_seen = True

    # Devices: the mesh's axes.
    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.model = 1

    c.lock()  # From here on a misspelt field is an error, not a new field.
    c.data.options.unlock()
    return c
