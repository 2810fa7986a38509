"""Package metadata and dependencies; extras are named for what they enable."""

from setuptools import find_packages, setup

NOTEBOOKS = ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"]
TEST = [
    "hypothesis>=6.100",
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "ruff>=0.6",
    *NOTEBOOKS,
]

setup(
    name="gr",
    version="0.1.0",
    description="Constrained generative retrieval and recommendation in JAX and Flax NNX.",
    packages=find_packages(include=["gr", "gr.*"]),
    package_data={"gr.reports": ["*.jinja"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "etils[epath]>=1.9",
        "flax>=0.12,<0.14",
        "fsspec>=2024.2",
        "grain>=0.2.12",
        "jax>=0.7,<0.12",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.4",
        "orbax-checkpoint>=0.11.20",
        "pyarrow>=16",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "threadpoolctl>=3.1",
        "tensorboardX>=2.6",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": TEST,
        "notebooks": NOTEBOOKS,
        "text": ["sentence-transformers>=3.0"],
        "gcs": ["gcsfs>=2024.2"],  # It brings google-cloud-storage, which Orbax asks for.
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
    },
)
