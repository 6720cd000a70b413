"""Packaging. Tools (ruff, pytest) are configured in pyproject.toml; tested versions are pinned in constraints.txt."""

from pathlib import Path

from setuptools import setup

VERSION = "0.1.0"

setup(
    name="magnet-llm",
    version=VERSION,
    description="MAGNET: one set of weights that generates, embeds and fills gaps in text",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # a top-level module called `train` would collide with others, so these folders are installed under magnet_*
    package_dir={
        "magnet_hub": "hub",
        "magnet_train": "train",
        "magnet_eval": "evaluation",
        "magnet_cli": "cli",
        "magnet_assets": "examples/assets",  # the shipped adapter, and the stories of the demo
    },
    packages=[
        "configuration_magnet",
        "modeling_magnet",
        "magnet_hub",
        "magnet_train",
        "magnet_train.data",
        "magnet_train.settings",
        "magnet_train.survival",
        "magnet_eval",
        "magnet_cli",
        "magnet_assets",
    ],
    package_data={
        "configuration_magnet": ["recipes/*.yaml"],
        "magnet_hub": ["card_template.md"],
        "magnet_assets": ["magnet-smollm2-135m/*", "everyday-stories/*"],
    },
    install_requires=[
        "accelerate>=1.10",
        "datasets>=5.0",
        "filelock>=4.2",
        "gguf>=0.17",
        "huggingface_hub>=1.31",
        "jinja2>=3.1",
        "joblib>=1.4",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "peft>=0.20",
        "pyyaml>=6.0.2",
        "safetensors>=0.8",
        "sentence-transformers>=6.0",
        "sentencex>=1.0.32",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "torch>=2.10",
        "tqdm>=4.66",
        "transformers>=5.24,<6",
    ],
    extras_require={
        "quantized": ["bitsandbytes>=0.48"],
        "onnx": ["onnx>=1.23", "onnxruntime>=1.32", "onnxscript>=0.7", "openvino>=2026.4"],
        "scale": ["ray[data]>=2.60"],
        "space": ["gradio>=6.31,<7", "playwright>=1.65"],
        "eval": ["lm-eval>=0.4.9", "mteb>=2.0", "rouge-score>=0.1.2", "seqeval>=1.2.2"],
        "dev": [
            "hypothesis>=6.100",
            "parameterized>=0.9",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "rouge-score>=0.1.2",
            "ruff>=0.12",
            "seqeval>=1.2.2",
            "tensorboard>=2.17",
        ],
    },
    entry_points={"console_scripts": ["magnet = magnet_cli.main:main"]},
)
