"""The clinic on the convolutional networks of Hugging Face, small, and with random weights: nothing is downloaded."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

import bnlearn


@dataclass(frozen=True)
class Family:
    """A class of ``transformers``, what makes it small, and what the clinic has to say.

    ``left`` is what feeds the layers that cannot be folded, with their number; ``swapped`` the number of layers whose
    momentum is in TensorFlow's convention; ``dropout`` tells of dropout before batch norm, of which the audit may warn.
    """

    kind: str
    config: dict[str, Any]
    norms: int
    left: dict[str, int] = field(default_factory=dict)
    swapped: int = 0
    dropout: bool = False
    sizes: tuple[int, ...] = (16, 16, 14)


FAMILIES = {
    "ResNet": Family(
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "layer_type": "basic"},
        11,
    ),
    "ResNet, bottleneck": Family(
        "ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]}, 12
    ),
    "RegNet X": Family(
        "RegNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 4, "layer_type": "x"},
        12,
    ),
    "RegNet Y": Family(
        "RegNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 4},
        12,
    ),
    "MobileNet V1": Family("MobileNetV1ForImageClassification", {"depth_multiplier": 0.125}, 27, swapped=27),
    "MobileNet V2": Family("MobileNetV2ForImageClassification", {"depth_multiplier": 0.125}, 52, swapped=52),
    "EfficientNet": Family(
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
        31,
        swapped=22,
        dropout=True,
    ),
    "ALIGN": Family(
        "AlignVisionModel", {"width_coefficient": 0.25, "depth_coefficient": 0.5}, 30, swapped=21, dropout=True
    ),
    "LeViT": Family(
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "down_ops": [["Subsample", 8, 2, 2, 2, 2], ["Subsample", 8, 3, 2, 2, 2]],
        },
        27,
        {"mean": 1},
        sizes=(24, 24, 20),
    ),
    "MobileViT": Family(
        "MobileViTForImageClassification",
        {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "num_attention_heads": 2},
        32,
        dropout=True,
    ),
    "MobileViT V2": Family(
        "MobileViTV2ForImageClassification",
        {"width_multiplier": 0.25, "base_attn_unit_dims": [32, 48, 64], "n_attn_blocks": [1, 1, 1]},
        25,
    ),
    "CvT": Family(
        "CvtForImageClassification", {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}, 18
    ),
    "HGNet V2": Family(
        "HGNetV2ForImageClassification",
        {
            "embedding_size": 8,
            "hidden_sizes": [16, 24, 32, 32],
            "depths": [1, 1, 1, 1],
            "stem_channels": [3, 8, 8],
            "stage_in_channels": [8, 16, 24, 32],
            "stage_mid_channels": [8, 8, 8, 8],
            "stage_out_channels": [16, 24, 32, 32],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
        },
        28,
    ),
    "PP-LCNet": Family("PPLCNetForImageClassification", {"scale": 0.25, "class_expand": 32}, 27),
    "PP-LCNet V3": Family(
        "PPLCNetV3Backbone",
        {
            "scale": 0.25,
            "conv_symmetric_num": 2,
            "block_configs": [[[3, n, 2 * n, 1 + (n > 16), n > 64]] for n in (16, 32, 64, 128, 256)],
        },
        28,
        {"batch_norm": 1, "add": 1},
    ),
    "SwiftFormer": Family(
        "SwiftFormerForImageClassification", {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32]}, 14, {"add": 5}
    ),
    "TextNet": Family(
        "TextNetForImageClassification",
        {"stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 24, 32]},
        51,
        {"relu": 11},
        dropout=True,
    ),
    "RT-DETR": Family(
        "RTDetrResNetBackbone", {"embedding_size": 8, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}, 19
    ),
    "SegFormer": Family(
        "SegformerForSemanticSegmentation",
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 24, 32],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 16,
        },
        1,
    ),
    "UVDoc": Family(
        "UVDocBackbone",
        {
            "resnet_head": [[3, 8], [8, 8]],
            "resnet_configs": [[[8, 8, 1, False]], [[8, 16, 1, True]], [[16, 24, 1, True]]],
            "stage_configs": [[[24, 1]], [[24, 2]], [[24, 8], [24, 3]]],
        },
        14,
    ),
}


@cache
def model_of(name: str) -> tuple[Any, list[Any]]:
    """The model with random weights and statistics, and batches. The tests leave it as it was: so they share it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family = FAMILIES[name]
    kind = getattr(transformers, family.kind)
    torch.manual_seed(0)
    model = kind(kind.config_class(**family.config))
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.5)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            # Their own, of standard deviation 0.02, is for weights that come from a file: epsilon would drown the rest.
            torch.nn.init.kaiming_normal_(module.weight)
    batches = [torch.randn(size, 3, 64, 64) for size in family.sizes]
    bnlearn.recalibrate(model, batches, one_pass=True, progress=False)
    return model.eval(), batches


def outputs(model: Any, batch: Any) -> list[Any]:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        found = dict(model(batch))
    return [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]


each = pytest.mark.parametrize("name", FAMILIES)


@each
def test_audit(name: str, portrait: Any) -> None:
    model, batches = model_of(name)
    before = portrait(model)
    report = bnlearn.audit(model, batches)
    assert portrait(model) == before
    assert len(report.layers) == FAMILIES[name].norms
    found = Counter(finding.code for finding in report.findings if finding.severity != "info")
    if FAMILIES[name].dropout:
        del found["BN308"]
    assert found == Counter({"BN104": FAMILIES[name].swapped})


@each
def test_fold(name: str, portrait: Any) -> None:
    model, batches = model_of(name)
    before = portrait(model)
    folded = bnlearn.fold(model, batches[0])
    assert portrait(model) == before
    family, folding = FAMILIES[name], folded.folding
    assert folding.error < 1e-4
    assert len(folding.folded) == family.norms - sum(family.left.values())
    sources = Counter(why.removeprefix("what arrives comes from ").partition(",")[0] for why in folding.left.values())
    assert sources == Counter(family.left)
    for old, new in zip(outputs(model, batches[1]), outputs(folded, batches[1]), strict=True):
        assert (old - new).abs().max() <= 1e-4 * old.abs().max()


@each
def test_freeze(name: str, portrait: Any) -> None:
    torch = pytest.importorskip("torch")
    model, batches = model_of(name)
    model.train()
    before = portrait(model)
    with bnlearn.freeze(model) as frozen:
        assert len(frozen.layers) == FAMILIES[name].norms
        assert not frozen.left
        values = [copy.deepcopy(model.get_submodule(layer).state_dict()) for layer in frozen.layers]
        with torch.random.fork_rng([]):  # dropout draws from it
            outputs(model, batches[0])
        for layer, old in zip(frozen.layers, values, strict=True):
            new = model.train().get_submodule(layer).state_dict()
            assert all(torch.equal(old[key], new[key]) for key in old)
    assert portrait(model) == before
    model.eval()


@each
def test_replace(name: str, portrait: Any) -> None:
    model, batches = model_of(name)
    before = portrait(model)
    with bnlearn.replace(model, "group") as replaced:
        assert len(replaced.layers) == FAMILIES[name].norms
        copied = copy.deepcopy(model)  # some keep what they compute
        assert all(leaf.isfinite().all() for leaf in outputs(copied, batches[0]))
    assert portrait(model) == before


def test_recalibrate_exactly(portrait: Any) -> None:
    model, batches = model_of("ResNet")
    before = portrait(model, versions=False)
    with bnlearn.recalibrate(model, batches, progress=False) as done:
        assert len(done.layers) == FAMILIES["ResNet"].norms
        assert portrait(model, versions=False) != before
        assert bnlearn.fold(model, batches[0]).folding.error < 1e-4
        # Once more gives the same: what arrives is what is there at inference.
        exact = {name: tensor.clone() for name, tensor in model.named_buffers()}
        bnlearn.recalibrate(model, batches, progress=False)
        assert all(
            ((exact[name] - tensor).abs() <= 1e-5 * tensor.abs().max()).all() for name, tensor in model.named_buffers()
        )
    assert portrait(model, versions=False) == before
