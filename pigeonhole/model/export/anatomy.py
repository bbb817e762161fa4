"""What an export's pickle says of the learner in it: its kind, labels, network and transforms, read as data.

Nothing is imported and nothing built; that is what lets `doctor` look into a file that nobody trusts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pigeonhole.errors import ModelFileError
from pigeonhole.model.export import names
from pigeonhole.model.export.pickles import Code, Global, Made, Pickle, Weights, walk
from pigeonhole.model.export.shapes import parts_built

LEARNER = "fastai.learner.Learner"
# learners of other things, by their class
OTHER_LEARNERS = {
    "fastai.tabular.learner.TabularLearner": "rows of a table",
    "fastai.text.learner.TextLearner": "texts",
    "fastai.text.learner.LMLearner": "texts",
    "fastai.collab.CollabLearner": "users and items",
}
# transforms that only other learners have; what a classifier's targets go through
OTHER_TASKS = {
    "AddMaskCodes": "predicts a mask (segmentation)",
    "RegressionSetup": "predicts numbers (regression)",
    "PointScaler": "predicts points",
    "BBoxLabeler": "predicts boxes",
}
CLASSIFIER_TARGETS = ("Categorize", "MultiCategorize", "EncodedMultiCategorize")
IMAGE_CLASSES = ("PILImage", "PILImageBW")
FASTAI_1 = ("basic_train", "basic_data", "data_block", "vision.image", "vision.transform", "callbacks")
OLD_TIMM = ("timm.models.layers", "timm.models.efficientnet_blocks", "timm.models.efficientnet_builder")
# networks of timm before 0.9 whose answers were compared on today's: the code of others may mean something else now
COMPARED_TIMM = (
    "Beit ByobNet Cait ConvNeXt DenseNet EfficientNet HighResolutionNet MlpMixer MobileNetV3 NormFreeNet RegNet ResNet "
    "ResNetV2 VGG VisionTransformer"
)
GLUE = ("Sequential", "ModuleList", "Identity", "Flatten", "Dropout")  # layers that tell nothing of a network
# events in which a callback can change what the network sees or says, when it does no more than it should
INFERENCE_EVENTS = {"before_validate", "before_batch", "after_pred"}
TRAINING_ONLY = 0  # fastai's split_idx


@dataclass(frozen=True)
class Anatomy:
    """What is in a learner.

    `needed` are names of the notebook's that inference calls; `callbacks` the notebook's callbacks that are names only,
    as fastai wrote them until 2.7, so that nobody can tell; `trouble` says why it cannot be served.
    """

    era: str
    network: str
    labels: tuple[str, ...]
    multi_label: bool
    item_transforms: tuple[str, ...]
    batch_transforms: tuple[str, ...]
    needed: tuple[str, ...]
    callbacks: tuple[str, ...]
    trouble: str | None


def dissect(pickle: Pickle, allowed: frozenset[str] = frozenset()) -> Anatomy:
    """Look at an image classifier's pickle; `allowed` names are admitted on top.

    Raises:
        ModelFileError: it holds no Learner.
    """
    if _kind(pickle.root) != LEARNER:
        raise ModelFileError(f"it holds {_short(pickle.root, pickle)}, not what learn.export() writes.")
    learner = pickle.root
    loader = _loader(learner)
    targets = _transforms(_target_pipeline(loader))
    categorize = next((target for target in targets if _class_name(target) in CLASSIFIER_TARGETS), None)
    return Anatomy(
        era=era_of(pickle),
        network=_network(learner),
        labels=_labels(categorize),
        multi_label="Multi" in _class_name(categorize),
        item_transforms=tuple(map(_describe, _active(loader, "after_item"))),
        batch_transforms=tuple(map(_describe, _active(loader, "before_batch") + _active(loader, "after_batch"))),
        needed=tuple(_needed(learner, loader, allowed)),
        callbacks=tuple(_unknown_callbacks(learner, allowed)),
        trouble=_trouble(loader, categorize) or _untested_timm(pickle),
    )


def other_kind(pickle: Pickle) -> str | None:
    """What the file is and what to do, where it is of a kind that is known and cannot be served; else None."""
    root, modules = pickle.root, {node.module for node in pickle.nodes if isinstance(node, Global)}
    kind = _kind(root)
    if kind == LEARNER:
        return _other_task(root)
    if kind in OTHER_LEARNERS:
        return f"it is a learner of {OTHER_LEARNERS[kind]}; only image classifiers are served."
    if any(module.removeprefix("fastai.").startswith(FASTAI_1) for module in modules if module.startswith("fastai.")):
        return (
            "it is an export of fastai 1, whose learners no fastai 2 can read; train again with fastai 2, on the same "
            "photos."
        )
    if any(module.partition(".")[0] == "sklearn" for module in modules):
        return f"it is a scikit-learn model ({_short(root, pickle)}); only what learn.export() wrote is served."
    if _is_weights(root):
        return (
            "it is a state_dict: weights without network, labels and transforms. In the notebook, load it into the "
            "learner with learn.model.load_state_dict() and call learn.export()."
        )
    if isinstance(root, dict) and "model" in root and _is_weights(root["model"]):
        return (
            "it is what learn.save() wrote: weights without network, labels and transforms. In the notebook, "
            "learn.load() it and call learn.export()."
        )
    if isinstance(root, Made) and isinstance(root.get("_modules"), (dict, Made)):
        return f"it is a bare network ({_short(root, pickle)}) without labels; call learn.export() in the notebook."
    return None


def _other_task(learner: Made) -> str | None:
    """What a Learner does that is no classifier."""
    loader = _loader(learner)
    for transform in [*_transforms(_target_pipeline(loader)), *_active(loader, "after_item")]:
        if _class_name(transform) in OTHER_TASKS:
            return f"the learner {OTHER_TASKS[_class_name(transform)]}; only image classifiers are served."
    return None


def era_of(pickle: Pickle) -> str:
    """The fastai that exported it, as far as its names tell."""
    used = {str(node) for node in pickle.nodes if isinstance(node, Global)}
    if any(name.startswith("fastai2.") for name in used):
        return "fastai2, before 2.0"
    if any(name.startswith("fasttransform.") for name in used):
        newer = any(name.startswith("pathlib._local.") for name in used)
        return "fastai 2.8" + (", Python 3.13 or later" if newer else "")
    if "fastai.learner.CastToTensor" in used:
        return "fastai 2.7"
    if "fastai.torch_core._rebuild_from_type" in used:
        return "fastai 2.4 to 2.6"
    if any(f"fastai.layers.{loss}" in used for loss in names.LOSSES.split()):
        return "fastai 2.0 or 2.1"
    return "fastai 2.0 to 2.3"


def _kind(node: Any) -> str:
    if isinstance(node, Made) and isinstance(node.maker, Global):
        return ".".join(names.moved(node.maker.module, node.maker.name))
    return ""


def _class_name(node: Any) -> str:
    return _kind(node).rpartition(".")[2]


def _short(root: Any, pickle: Pickle) -> str:
    if isinstance(root, Made):
        return root.kind
    first = next((node for node in pickle.nodes if isinstance(node, Global)), None)
    if root is None and first:
        return str(first)
    return f"a {type(root).__name__}"


def _is_weights(node: Any) -> bool:
    """Is it a dict of nothing but tensors (and counts)?"""
    values: list[Any] = list(node.values()) if isinstance(node, dict) else []
    if isinstance(node, Made):
        values = [value for _, value in node.items]
    return bool(values) and all(_kind(v).startswith("torch._utils._rebuild") or isinstance(v, int) for v in values)


def items_of(node: Any) -> list[Any]:
    """The elements of a list or of fastcore's L."""
    if isinstance(node, Made):
        node = node.get("items", node.elements)
    return list(node) if isinstance(node, (list, tuple)) else []


def _loader(learner: Made) -> Any:
    """The validation DataLoader, which `predict` takes its transforms from."""
    loaders = items_of(learner.get("dls").get("loaders")) if isinstance(learner.get("dls"), Made) else []
    return loaders[min(1, len(loaders) - 1)] if loaders else None


def _pipelines(loader: Any) -> list[Any]:
    """The TfmdLists of inputs and targets."""
    dataset = loader.get("dataset") if isinstance(loader, Made) else None
    return items_of(dataset.get("tls")) if isinstance(dataset, Made) else []


def _target_pipeline(loader: Any) -> Any:
    lists = _pipelines(loader)
    return lists[-1].get("tfms") if len(lists) > 1 and isinstance(lists[-1], Made) else None


def _transforms(pipeline: Any) -> list[Made]:
    fs = pipeline.get("fs") if isinstance(pipeline, Made) else None
    return [transform for transform in items_of(fs) if isinstance(transform, Made)]


def _active(loader: Any, name: str) -> list[Made]:
    """The transforms of a pipeline that work on validation, and so at prediction."""
    found = _transforms(loader.get(name)) if isinstance(loader, Made) else []
    return [transform for transform in found if _split_idx(transform) != TRAINING_ONLY]


def _split_idx(transform: Made) -> Any:
    own = transform.maker.members.get("split_idx") if isinstance(transform.maker, Code) else None
    return transform.get("split_idx", own)


def _describe(transform: Made) -> str:
    """`Resize(size=(64, 64), method=crop)`: the settings that are plain values."""
    shown = []
    for name in ("size", "method", "pad_mode", "min_scale", "val_xtra", "max_scale"):
        value = transform.get(name)
        value = value.arguments[0] if isinstance(value, Made) and value.arguments else value
        if isinstance(value, (list, tuple)) and all(isinstance(side, int) for side in value):
            shown.append(f"{name}={tuple(value)}")
        elif isinstance(value, (str, int, float)):
            shown.append(f"{name}={value}")
    return f"{_class_name(transform) or 'function'}({', '.join(shown)})"


def _labels(categorize: Any) -> tuple[str, ...]:
    vocab = categorize.get("vocab") if isinstance(categorize, Made) else None
    return tuple(str(_plain(label)) for label in items_of(vocab.get("items") if isinstance(vocab, Made) else vocab))


def _plain(label: Any) -> Any:
    """A label is a string or a number; NumPy's strings are a call of `str_`."""
    return label.arguments[-1] if isinstance(label, Made) and label.arguments else label


def _network(learner: Made) -> str:
    """The outermost class of the network, the telling classes in it, and the number of parameters."""
    model = learner.get("model")
    layers = [node for node in walk(model) if isinstance(node, Made) and node.get("_modules") is not None]
    telling = [name for name in dict.fromkeys(map(_class_name, layers)) if name not in GLUE]
    held = (node.arguments[0] for node in walk(model) if _kind(node) == "torch._utils._rebuild_parameter")
    parameters = {tensor.arguments[0].key[2]: tensor for tensor in held if _is_tensor(tensor)}
    count = sum(_product(tensor.arguments[2]) for tensor in parameters.values())
    named = ", ".join(telling[:6]) + (", …" if len(telling) > 6 else "")
    return f"{_class_name(model)} of {named}; {count:,} parameters"


def _is_tensor(node: Any) -> bool:
    return (
        _kind(node) == "torch._utils._rebuild_tensor_v2"
        and isinstance(node.arguments, tuple)
        and isinstance(node.arguments[0], Weights)
        and isinstance(node.arguments[0].key, tuple)
        and len(node.arguments[0].key) > 2
    )


def _product(sizes: Any) -> int:
    product = 1
    for size in sizes if isinstance(sizes, tuple) else ():
        product *= size if isinstance(size, int) else 1
    return product


def _trouble(loader: Any, categorize: Any) -> str | None:
    if not _takes_pictures(loader):
        return "the learner does not take pictures; only image classifiers are served."
    if categorize is None or not _labels(categorize):
        return "the learner has no list of labels; only image classifiers are served."
    return None


def _takes_pictures(loader: Any) -> bool:
    kind = _picture_class(loader)
    return isinstance(kind, Global) and (kind.name in IMAGE_CLASSES or _is_notebooks(kind))


def _picture_class(loader: Any) -> Any:
    """What the pipeline of inputs makes of a file in the end: PILImage, say."""
    lists = _pipelines(loader)
    types = items_of(lists[0].get("types")) if lists and isinstance(lists[0], Made) else []
    return types[-1] if types else None


def _is_notebooks(name: Global, allowed: frozenset[str] = frozenset()) -> bool:
    return names.judge(name.module, name.name, allowed).fate == "notebook"


def _untested_timm(pickle: Pickle) -> str | None:
    modules = {node.module for node in pickle.nodes if isinstance(node, Global)}
    if not any(module.startswith(OLD_TIMM) for module in modules):
        return None
    for node in pickle.nodes:
        if not (
            isinstance(node, Made) and _kind(node).startswith("timm.models.") and node.get("num_classes") is not None
        ):
            continue
        if _class_name(node) not in COMPARED_TIMM.split():
            return (
                f"its network, {_class_name(node)}, was exported with timm 0.8 or before, whose code was another; "
                "whether today's gives the same answers is not known. Export it again with timm 0.9 or later."
            )
    return None


def _needed(learner: Made, loader: Any, allowed: frozenset[str]) -> Iterator[str]:
    """What of the notebook's own inference would call: in the network, the loss, the transforms, the callbacks."""
    parts = [learner.get("model"), learner.get("loss_func"), *_active(loader, "after_item")]
    parts += [*_active(loader, "before_batch"), *_active(loader, "after_batch"), _picture_class(loader)]
    found = {str(node) for node in walk(parts, _built) if isinstance(node, Global) and _is_notebooks(node, allowed)}
    for callback in items_of(learner.get("cbs")):
        maker = callback.maker if isinstance(callback, Made) else None
        if isinstance(maker, Code) and INFERENCE_EVENTS & _members(maker):
            found.add(str(maker))
    yield from sorted(found)


def _unknown_callbacks(learner: Made, allowed: frozenset[str]) -> Iterator[str]:
    for callback in items_of(learner.get("cbs")):
        maker = callback.maker if isinstance(callback, Made) else None
        if type(maker) is Global and _is_notebooks(maker, allowed):
            yield str(maker)


def _built(node: Any) -> Iterator[Any]:
    """What of `node` is built, its maker included."""
    yield from parts_built(node)
    if isinstance(node, Made):
        yield node.maker


def _members(code: Code) -> set[str]:
    """What a class that travels as bytecode defines, or inherits of others that do."""
    inherited = (_members(base) for base in code.bases if isinstance(base, Code))
    return set(code.members).union(*inherited)
