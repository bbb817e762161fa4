"""Attributes that timm's layers gained after a learner was exported, with the value that means what they did before.

A pickled network brings its attributes; the code is the installed timm's, and asks for more. Each row was found by
running networks that timm 0.4.12, 0.5.4, 0.6.13 and 0.9.16 pickled on timm 1.0.31 and comparing the answers. What is
not listed here is not guessed: the network stops with an AttributeError, at the start of the service.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn


class Gained(NamedTuple):
    """Classes of timm's, by name or by module and name (`*`: all), what they gained, and how to make it of a layer."""

    classes: str
    attribute: str
    value: Callable[[Any], Any]


def _identity(module: nn.Module) -> nn.Module:
    from torch import nn

    return nn.Identity()


def _none(module: nn.Module) -> None:
    return None


def _false(module: nn.Module) -> bool:
    return False


def _skips(module: Any) -> bool:
    return bool(getattr(module, "has_residual", False))  # its name until timm 0.6


def _head_width(attention: Any) -> int:
    return int(attention.qkv.out_features // 3 // attention.num_heads)


def _attention_width(attention: Any) -> int:
    return int(attention.qkv.out_features // 3)


ATTENTION = "attention.Attention vision_transformer.Attention beit.Attention"
BLOCK = "vision_transformer.Block beit.Block"
EFFICIENTNET_BLOCKS = "DepthwiseSeparableConv InvertedResidual EdgeResidual ConvBnAct"

GAINED = (
    Gained("*", "grad_checkpointing", _false),
    Gained("BatchNormAct2d GroupNormAct", "drop", _identity),
    Gained("LayerNorm2d GroupNormAct GroupNorm1", "_fast_norm", _false),
    Gained("classifier.ClassifierHead", "drop", lambda head: _dropout(head.drop_rate)),
    Gained("DenseNet DLA HighResolutionNet", "head_drop", lambda net: _dropout(net.drop_rate)),
    Gained("VisionTransformer Beit Cait MlpMixer", "head_drop", _identity),
    Gained("PatchEmbed", "strict_img_size", lambda _: True),
    Gained("PatchEmbed", "dynamic_img_pad", _false),
    Gained("PatchEmbed", "flatten", lambda _: True),
    Gained("Mlp", "drop1", _identity),
    Gained("Mlp", "drop2", _identity),
    Gained("Mlp", "norm", _identity),
    Gained(ATTENTION, "gate", _none),
    Gained(ATTENTION, "head_dim", _head_width),
    Gained(ATTENTION, "attn_dim", _attention_width),
    Gained(ATTENTION, "q_norm", _identity),
    Gained(ATTENTION, "k_norm", _identity),
    Gained(ATTENTION, "norm", _identity),
    Gained(ATTENTION + " cait.ClassAttn", "fused_attn", _false),
    Gained(ATTENTION, "qkv_bias_separate", _false),
    Gained(BLOCK, "drop_path1", lambda block: getattr(block, "drop_path", None) or _identity(block)),
    Gained(BLOCK, "drop_path2", lambda block: getattr(block, "drop_path", None) or _identity(block)),
    Gained(BLOCK, "ls1", _identity),
    Gained(BLOCK, "ls2", _identity),
    Gained("VisionTransformer", "reg_token", _none),
    Gained("VisionTransformer", "dynamic_img_size", _false),
    Gained("VisionTransformer", "no_embed_class", _false),
    Gained("VisionTransformer", "patch_drop", _identity),
    Gained("VisionTransformer", "norm_pre", _identity),
    Gained("VisionTransformer", "fc_norm", _identity),
    Gained("VisionTransformer", "attn_pool", _none),
    Gained("VisionTransformer", "global_pool", lambda _: "token"),
    Gained("VisionTransformer Beit", "num_prefix_tokens", lambda _: 1),
    Gained("VisionTransformer", "pool_include_prefix", _false),
    Gained("Beit MlpMixer", "global_pool", lambda _: "avg"),
    Gained(EFFICIENTNET_BLOCKS, "has_skip", _skips),
    Gained(EFFICIENTNET_BLOCKS, "drop_path", _identity),
    Gained(EFFICIENTNET_BLOCKS, "aa", _identity),
    Gained(EFFICIENTNET_BLOCKS, "conv_s2d", _none),
    Gained("MobileNetV3", "norm_head", _identity),
    Gained("ConvNeXtBlock", "shortcut", _identity),
    Gained("RepVggBlock", "reparam_conv", _none),
    Gained("Bottle2neck", "drop_block", _identity),
    Gained("Bottle2neck", "drop_path", _none),
)


# norm layers by class, whose activation was a layer of its own until timm 0.5
FOLDED = {
    "DepthwiseSeparableConv": ("bn1", "bn2"),
    "InvertedResidual": ("bn1", "bn2"),
    "EdgeResidual": ("bn1",),
    "ConvBnAct": ("bn1",),
    "EfficientNet": ("bn1", "bn2"),
    "MobileNetV3": ("bn1",),
}
# attributes by class that were None until timm 0.5 where they are a layer that does nothing now
ONCE_NONE = {"BasicBlock": ("drop_block", "aa"), "Bottleneck": ("drop_block", "aa"), "Bottle2neck": ("drop_block",)}


def _dropout(rate: float) -> nn.Module:
    from torch import nn

    return nn.Dropout(rate)


def complete(network: nn.Module) -> None:
    """Give timm's layers in `network`, in place, what today's code expects of them."""
    for layer in list(network.modules()):
        if type(layer).__module__.startswith("timm."):
            _complete_layer(layer)


def _complete_layer(layer: Any) -> None:
    name, module = type(layer).__name__, type(layer).__module__.rpartition(".")[2]
    if name in FOLDED:
        _fold_activations(layer, FOLDED[name])
    for gained in GAINED:
        named = gained.classes == "*" or {name, f"{module}.{name}"} & set(gained.classes.split())
        if named and not hasattr(layer, gained.attribute):
            setattr(layer, gained.attribute, gained.value(layer))
    for attribute in ONCE_NONE.get(name, ()):
        if getattr(layer, attribute, 0) is None:
            setattr(layer, attribute, _identity(layer))


def _fold_activations(layer: Any, norms: tuple[str, ...]) -> None:
    """Until timm 0.5 a layer called its activation after its norm; since, the norm is expected to do both."""
    from torch import nn

    for norm in norms:
        activation = getattr(layer, norm.replace("bn", "act"), None)
        if type(getattr(layer, norm, None)) is nn.BatchNorm2d and activation is not None:
            setattr(layer, norm, nn.Sequential(getattr(layer, norm), activation))
