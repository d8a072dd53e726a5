"""Folder map: the top-level folders of the repository are installed inside the package `xllm`."""

from setuptools import setup


PACKAGES = {
    "xllm": "xllm",
    "xllm.assembly": "xllm/assembly",
    "xllm.commands": "xllm/commands",
    "xllm.demo": "xllm/demo",
    "xllm.demo.device": "xllm/demo/device",
    "xllm.demo.paper": "xllm/demo/paper",
    "xllm.device": "xllm/device",
    "xllm.page": "xllm/page",
    "xllm.serving": "xllm/serving",
    "xllm.modeling_xllm": "modeling_xllm",
    "xllm.modeling_xllm.composition": "modeling_xllm/composition",
    "xllm.modeling_xllm.conversion": "modeling_xllm/conversion",
    "xllm.modeling_xllm.stage1": "modeling_xllm/stage1",
    "xllm.processing": "processing",
    "xllm.training": "training",
    "xllm.training.batches": "training/batches",
    "xllm.training.data": "training/data",
    "xllm.training.evaluation": "training/evaluation",
    "xllm.training.inspection": "training/inspection",
    "xllm.training.instructions": "training/instructions",
    "xllm.training.recipes": "training/recipes",
    "xllm.training.saving": "training/saving",
    "xllm.training.streams": "training/streams",
    "xllm.training.trainers": "training/trainers",
    "xllm.hub_cards": "hub_cards",
}

setup(
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "xllm": ["py.typed"],
        "xllm.page": ["*.css", "*.yaml"],
        "xllm.training.instructions": ["*.yaml"],
        "xllm.training.recipes": ["*.yaml"],
        "xllm.hub_cards": ["*.md"],
    },
)
