"""Folder map: the top-level folders of the repository are installed inside the `xllm` package (metadata: pyproject.toml)."""

from setuptools import setup


PACKAGES = {
    "xllm": "xllm",
    "xllm.commands": "xllm/commands",
    "xllm.modeling_xllm": "modeling_xllm",
    "xllm.processing": "processing",
    "xllm.training": "training",
    "xllm.training.demo": "training/demo",
    "xllm.training.recipes": "training/recipes",
    "xllm.hub_cards": "hub_cards",
}

setup(
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "xllm": ["py.typed"],
        "xllm.processing": ["*.jinja"],
        "xllm.training.recipes": ["*.yaml"],
        "xllm.hub_cards": ["*.md"],
    },
)
