"""Package metadata and dependencies; extras are named for what they enable."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Read, not imported: a build has none of the dependencies.
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "gr/__init__.py").read_text(), re.M)[1]

NOTEBOOKS = ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"]
TEST = [
    "flatbuffers>=24.3",
    "hypothesis>=6.100",
    "ir_measures>=0.4",  # trec_eval, beside which our metrics are tested.
    "mypy>=1.18",
    "pandas>=2.2",  # The README's example reads a data frame.
    "pytest>=8.0",
    "pytest-xdist>=3.7",
    "ruff>=0.6",
    "setuptools>=70.1",  # Builds the wheel that is tested.
    "safetensors>=0.7",
    "tokenizers>=0.20",
    *NOTEBOOKS,
]

setup(
    name="gr-constrained",  # `gr` is another project's on the package index.
    version=VERSION,
    description="Constrained generative retrieval and recommendation in JAX and Flax NNX.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["gr", "gr.*"]),
    package_data={"gr": ["py.typed"], "gr.reports": ["*.jinja"]},
    python_requires=">=3.11",
    # The lower bounds of these are what `make test-oldest` installs.
    install_requires=[
        "absl-py>=2.1",
        "etils[epath]>=1.9",
        "flax>=0.12,<0.14",
        "fsspec>=2024.2",
        "grain>=0.2.12",
        "jax>=0.7.1,<0.12",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.4",
        "orbax-checkpoint>=0.11.20",
        "pyarrow>=16",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "threadpoolctl>=3.1",
        "tensorboardX>=2.6.2.2",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": TEST,
        "notebooks": NOTEBOOKS,
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"],
        "text": ["sentence-transformers>=3.0"],
        "serve": ["flatbuffers>=24.3"],  # By which jax.export writes files.
        "llm": ["safetensors>=0.7", "tokenizers>=0.20"],  # Checkpoints of language models.
        # Makes the golden checkpoints of the tests, and is compared with live; it brings those of `llm`.
        "hf": ["torch>=2.4", "transformers>=5.0"],
        "ranx": ["ranx>=0.3.20"],  # More ways to fuse lists.
        "gcs": ["gcsfs>=2024.2"],  # It brings google-cloud-storage, which Orbax asks for.
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        # Compiles for TPUs without one; JAX's own extra names the releases that fit it.
        "aot": ["jax[tpu]", "libtpu"],
    },
)
