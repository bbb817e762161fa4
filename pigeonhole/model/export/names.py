"""Which names an image learner's pickle may use: where they are today, and what stands in for those nobody needs.

A name may be *called* while the file is read; or empty objects of it may be *made* and given attributes; or it may be
*held* as it is. It is *left out* if inference never calls it, and a stand-in takes its place (labelling functions,
metrics, callbacks, progress bars). It is the *notebook's*. Or it is *refused*. No package is admitted as a whole:
`fastcore.xtras.run` and `torch.serialization.os.system` lie in honest ones. What is admitted was collected from exports
made with fastai2 0.0.30 and fastai 2.0 to 2.8 (tests/exports), and completed by hand with its neighbours: other losses,
activations, kinds of numbers.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, NamedTuple

UNDERSCORED = re.compile(r"(^|\.)__\w+__(\.|$)")  # `__class__` and its like lead from anything to everything
COMPUTED = "(computed)"  # stands for a module or a name that the pickle works out while it is read
NOTEBOOK = "__main__"  # the module of whatever was defined in the notebook


class Move(NamedTuple):
    """What module `old` had, `new` has since `since`: all (`*`), or the listed names, `before=after` where renamed."""

    old: str
    names: str
    new: str
    since: str

    def renamed(self, name: str) -> str | None:
        """What `name` is called there, if it is one of those that moved."""
        pairs = (entry.partition("=") for entry in self.names.split())
        return next((after or before for before, _, after in pairs if before == name), None)


LOSSES = (
    "BaseLoss CrossEntropyLossFlat FocalLoss FocalLossFlat BCEWithLogitsLossFlat BCELossFlat MSELossFlat L1LossFlat "
    "LabelSmoothingCrossEntropy LabelSmoothingCrossEntropyFlat DiceLoss"
)

LINEAR = "torch.nn.modules.linear"

# Applied from the first to the last: what one row moved, a later one may move again.
MOVED = (
    Move("fastai2", "*", "fastai", "fastai 2.0, the package's name until then"),
    Move("fastcore.transform", "*", "fasttransform.transform", "fastai 2.8"),
    Move("fastai.layers", LOSSES, "fastai.losses", "fastai 2.2"),
    Move("fastcore.utils", "*", "fastcore.basics", "fastcore 1.3"),
    Move("fastcore.foundation", "fastuple", "fastcore.basics", "fastcore 1.3"),
    Move("fastcore.imports", "noop noops", "fastcore.basics", "fastcore 1.3"),
    Move("fastai.torch_core", "noop", "fastai.imports", "fastai 2.0"),
    Move("fastai.torch_core", "_fa_rebuild_tensor _rebuild_from_type", "torch._tensor", "fastai 2.8"),
    Move("fastai.vision.augment", "TensorImage TensorMask", "fastai.torch_core", "Python 3.13"),
    Move("pathlib._local", "*", "pathlib", "Python 3.13"),
    # loaders that draw training's photos in a way of their own are ordinary ones when they do not train
    Move("fastai.callback.data", "WeightedDL=TfmdDL PartialDL=TfmdDL", "fastai.data.core", "always"),
    Move("numpy.core.multiarray", "*", "numpy._core.multiarray", "NumPy 2.0"),
    Move("numpy.core._multiarray_umath", "*", "numpy", "NumPy 1.25"),
    Move("numpy._core._multiarray_umath", "*", "numpy", "NumPy 2.0"),
    Move("numpy.core.numeric", "*", "numpy._core.numeric", "NumPy 2.0"),
    Move("pandas.core.indexes.numeric", "*", "pandas.core.indexes.base", "pandas 2.0"),
    Move("torch.tensor", "*", "torch._tensor", "torch 1.9"),
    Move(
        "torch.nn.modules.linear",
        "_LinearWithBias=NonDynamicallyQuantizableLinear",
        "torch.nn.modules.linear",
        "torch 1.9",
    ),
    Move("torchvision.models.utils", "*", "torchvision.models._utils", "torchvision 0.10"),
    Move("torchvision.models.mobilenet", "*", "torchvision.models.mobilenetv2", "torchvision 0.9"),
    Move(
        "torchvision.models.mobilenetv2",
        "ConvBNReLU=Conv2dNormActivation ConvBNActivation=Conv2dNormActivation",
        "torchvision.ops.misc",
        "torchvision 0.13",
    ),
    Move("timm.models.vision_transformer", "Attention", "timm.layers.attention", "timm 1.0.17"),
    Move("timm.models.efficientnet_blocks", "*", "timm.models._efficientnet_blocks", "timm 0.9"),
    Move("timm.models.efficientnet_builder", "*", "timm.models._efficientnet_builder", "timm 0.9"),
    Move("timm.models.features", "*", "timm.models._features", "timm 0.9"),
    Move("timm.models.layers", "*", "timm.layers", "timm 0.9"),
)

# What a pickle may call while it is read, with the arguments that judging.py looks at; nothing else.
CALLED = {
    "builtins": "set frozenset bytes complex slice getattr type",
    "collections": "OrderedDict",
    "copyreg": "_reconstructor",
    "functools": "partial",
    "types": "MethodType",
    "_codecs": "encode",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "numpy": "dtype",
    "numpy._core.multiarray": "scalar _reconstruct",
    "torch": "device Size",
    "torch._utils": "_rebuild_tensor_v2 _rebuild_parameter",
    "torch._tensor": "_rebuild_from_type _rebuild_from_type_v2 _fa_rebuild_tensor",
    "PIL.Image": "Resampling",
    "torchvision.transforms.functional": "InterpolationMode",
    "timm.layers.format": "Format",
}

# Classes of which a pickle may make an empty object and give it attributes (shapes.py says which).
MADE = {
    "fastcore.basics": "fastuple",
    "fastcore.foundation": "L",
    "fasttransform.transform": "Transform Pipeline",
    "fastai.data.core": "DataLoaders Datasets TfmdDL TfmdLists",
    "fastai.data.load": "_FakeLoader",
    "fastai.data.transforms": "Categorize MultiCategorize EncodedMultiCategorize CategoryMap OneHotEncode ToTensor "
    "IntToFloatTensor Normalize RegressionSetup Category MultiCategory",
    "fastai.vision.data": "ImageDataLoaders",
    "fastai.vision.augment": "_BrightnessLogit _ContrastLogit _WarpCoord _SaturationLogit _Hue DeterministicDraw",
    "fastai.learner": "Learner",
    "fastai.losses": LOSSES,
}

# Classes and functions that may be held as they are. The functions are called at inference, by the object that holds
# them; none of them does anything but reckon with numbers, or make a picture of one.
HELD = {
    "builtins": "object bool int float str bytes set frozenset list dict tuple print",
    "collections": "OrderedDict",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "typing": "Any",
    "numpy": "ndarray float64 float32 float16 int64 int32 int16 int8 uint8 bool_ str_ less greater less_equal "
    "greater_equal",
    "PIL.Image": "Image",
    "torch": "Tensor float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool sigmoid tanh relu "
    "contiguous_format channels_last",
    "torch.nn.parameter": "Parameter",
    "torch.nn.functional": "relu relu6 leaky_relu elu selu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh "
    "softplus softmax log_softmax adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d max_pool2d cross_entropy "
    "binary_cross_entropy binary_cross_entropy_with_logits nll_loss",
    "fastcore.basics": "noop noops",
    "fastai.imports": "noop noops",
    "fastai.torch_core": "TensorBase TensorCategory TensorMultiCategory TensorImageBase TensorImage TensorImageBW "
    "TitledStr TitledInt TitledFloat TitledTensorScalar",
    "fastai.data.core": "FilteredBase",
    "fastai.data.load": "_wif",
    "fastai.data.transforms": "parent_label",
    "fastai.vision.core": "PILBase PILImage PILImageBW",
    "fastai.vision.augment": "flip_mat rotate_mat zoom_mat dihedral_mat cutout_gaussian",
    "fastai.layers": "sigmoid sigmoid_ swish mish",
    "timm.layers.activations": "gelu quick_gelu mish swish sigmoid tanh hard_swish hard_sigmoid hard_mish",
    "timm.layers.adaptive_avgmax_pool": "adaptive_avgmax_pool2d adaptive_catavgmax_pool2d adaptive_pool_feat_mult",
}


class Family(NamedTuple):
    """The subclasses of `base` in `package` and below: they are made empty and given attributes, and not called."""

    package: str
    base: str


FAMILIES = (
    Family("torch.nn.modules", "torch.nn.modules.module.Module"),
    Family("torchvision.models", "torch.nn.modules.module.Module"),
    Family("torchvision.ops", "torch.nn.modules.module.Module"),
    Family("timm.models", "torch.nn.modules.module.Module"),
    Family("timm.layers", "torch.nn.modules.module.Module"),
    Family("fastai.layers", "torch.nn.modules.module.Module"),
    Family("fastai.vision.models", "torch.nn.modules.module.Module"),
    Family("fastai.vision.learner", "torch.nn.modules.module.Module"),
    Family("fastai.vision.augment", "fasttransform.transform.Transform"),
)
WRITE_CODE = (
    "torch.fx.graph_module.GraphModule",
    "torch.jit._script.ScriptModule",
)  # modules that run text of their state

# `getattr` is in every export of Python 3.11 and before. These are the pairs that occur there; no others are admitted.
ATTRIBUTES = {
    "fastai.vision.core.PILImage": "create",
    "fastai.vision.core.PILImageBW": "create",
    "fastai.vision.core.PILBase": "create",
    "fastai.torch_core.TensorImage": "lighting affine_coord hsv",
    "fastai.data.core.FilteredBase": "dataloaders",
    "PIL.Image.Resampling": "NEAREST BOX BILINEAR HAMMING BICUBIC LANCZOS",
    "torchvision.transforms.functional.InterpolationMode": "NEAREST BILINEAR BICUBIC LANCZOS HAMMING BOX",
    "timm.layers.format.Format": "NCHW NHWC NCL NLC",
}
# cloudpickle's helpers: pickles.py reads what they would make, and nothing else may call them
MAKERS_OF_CODE = ("_make_function", "_make_skeleton_class", "_make_skeleton_enum")
SETTERS_OF_CODE = ("_function_setstate", "_class_setstate")
CLOUDPICKLES = " ".join((*MAKERS_OF_CODE, *SETTERS_OF_CODE, "_builtin_type"))

# What training or a notebook leaves in a learner; inference calls none of it. (package, names, what it is)
LEFT_OUT = (
    ("fastai.callback", "*", "training callback"),
    ("fastai.metrics", "*", "metric"),
    ("fastai.optimizer", "*", "optimizer"),
    ("fastai.interpret", "*", "interpretation"),
    ("fastai.learner", "*", "training"),
    ("fastai.data.transforms", "*", "labelling function"),
    ("fastai.data.block", "*", "data block"),
    ("fastai.vision.data", "*", "data block"),
    ("fastai.vision.learner", "*", "splitter"),
    ("fastai.vision.models", "*", "architecture function"),
    ("fastai.torch_core", "trainable_params default_device params", "splitter"),
    ("fastai.layers", "*", "function"),
    ("torchvision.models", "*", "architecture function"),
    ("timm.models", "*", "architecture function"),
    ("timm.layers", "*", "function"),
    ("timm.optim", "*", "optimizer"),
    ("timm.loss", "*", "loss"),
    ("torch.optim", "*", "optimizer"),
    ("torch.distributions", "*", "training callback"),
    ("torch.utils.hooks", "RemovableHandle", "training callback"),
    ("fastai.torch_core", "Module", "annotation"),
    ("fastai.data.core", "FilteredBase", "annotation"),
    ("typing", "*", "annotation"),
    ("types", "GenericAlias UnionType NoneType", "annotation"),
    ("collections.abc", "*", "annotation"),
    ("collections", "defaultdict Counter deque", "container"),
    ("random", "Random", "random numbers"),
    ("re", "_compile", "pattern"),
    ("torch.cuda.amp.autocast_mode", "autocast", "mixed precision"),
    ("torch.amp.autocast_mode", "autocast", "mixed precision"),
    ("torch.cuda.amp.grad_scaler", "GradScaler OptState _refresh_per_optimizer_state", "mixed precision"),
    ("torch.amp.grad_scaler", "GradScaler OptState _refresh_per_optimizer_state", "mixed precision"),
    ("cloudpickle.cloudpickle", CLOUDPICKLES, "bytecode"),
    ("cloudpickle", CLOUDPICKLES, "bytecode"),
    ("inspect", "Signature Parameter _ParameterKind _empty", "signature"),
    ("plum", "*", "dispatch table"),
    ("plum._function", "*", "dispatch table"),
    ("plum._method", "*", "dispatch table"),
    ("plum._resolver", "*", "dispatch table"),
    ("plum._signature", "*", "dispatch table"),
    ("plum._util", "*", "dispatch table"),
    ("plum.function", "*", "dispatch table"),
    ("fastcore.dispatch", "TypeDispatch _TypeDict", "dispatch table"),
    ("fastcore.basics", "merge _using_attr is_not partialler", "function"),
    ("operator", "or_ itemgetter attrgetter", "function"),
    ("_operator", "or_ lt le gt ge getitem itemgetter attrgetter", "function"),
    ("functools", "reduce", "annotation"),
    ("IPython.core.display", "DisplayHandle", "progress bar"),
    ("IPython.core.display_functions", "DisplayHandle", "progress bar"),
    ("fastprogress", "*", "progress bar"),
    ("pandas", "DataFrame Series Index RangeIndex MultiIndex StringDtype CategoricalDtype Categorical", "table"),
    ("pandas.arrays", "StringArray ArrowStringArray NumpyExtensionArray", "table"),
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked", "table"),
    ("pandas.core.frame", "DataFrame", "table"),
    ("pandas.core.series", "Series", "table"),
    ("pandas.core.indexes.base", "Index Int64Index UInt64Index Float64Index _new_Index", "table"),
    ("pandas.core.indexes.range", "RangeIndex", "table"),
    ("pandas.core.internals.managers", "BlockManager SingleBlockManager", "table"),
    ("pandas._libs.internals", "_unpickle_block BlockManager", "table"),
    ("pyarrow.lib", "_restore_array type_for_alias py_buffer chunked_array", "table"),  # under pandas 3's strings
    ("sklearn.metrics", "*", "metric"),
    ("sklearn.metrics._classification", "*", "metric"),
    ("sklearn.metrics._ranking", "*", "metric"),
    ("logging", "getLogger Logger RootLogger", "logger"),
    ("datetime", "datetime date timedelta timezone", "time"),
    ("time", "struct_time", "time"),
    ("builtins", "map Ellipsis NotImplemented", "annotation"),
    ("builtins", "bytearray", "table"),
)

# Packages of which a name must be admitted, installed here or not. A module that is neither in one of these, nor
# Python's own, nor of an installed package is the notebook's neighbour (`from utils import get_x`); its names are
# treated as the notebook's.
KNOWN = (
    "torch torchvision timm fastai fastcore fasttransform fastprogress plum numpy pandas pyarrow PIL sklearn IPython "
    "matplotlib cloudpickle dill joblib numba scipy onnx openvino flask werkzeug gunicorn pigeonhole pip setuptools"
)


@dataclass(frozen=True)
class Verdict:
    """What becomes of a name: `module` and `name` are today's; `why` says what it is, or was."""

    fate: Literal["called", "made", "held", "left out", "notebook", "refused"]
    module: str
    name: str
    why: str = ""
    family: Family | None = None  # whose subclass it has to be

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@lru_cache(maxsize=4096)
def moved(module: str, name: str) -> tuple[str, str]:
    """Where `name` of `module` lies today."""
    for move in MOVED:
        if move.names == "*" and _within(module, move.old):
            module = move.new + module[len(move.old) :]
        elif module == move.old and (after := move.renamed(name)):
            module, name = move.new, after
    return module, name


def judge(module: str, name: str, allowed: Collection[str] = (), *, code: bool = False) -> Verdict:
    """What becomes of `name` of `module`; `allowed` holds names that the user vouches for, with their module.

    `code`: it travels as bytecode, which is never run; a function of fastai's own is then at worst left out.
    """
    if f"{module}.{name}" in allowed:
        return Verdict("called", module, name, "allowed by ALLOW_PICKLE_GLOBALS")
    return _judge(module, name, code)


@lru_cache(maxsize=4096)  # a learner uses a hundred names, ten thousand times; a hostile file may use more
def _judge(module: str, name: str, code: bool) -> Verdict:
    if COMPUTED in (module, name):
        return Verdict("refused", module, name, "computed while the file is read")
    if module == NOTEBOOK and not UNDERSCORED.search(name):
        return Verdict("notebook", module, name, "the notebook's own")
    module, name = moved(module, name)
    return _admitted(module, name) or _left_out(module, name, code) or _unknown(module, name)


def _admitted(module: str, name: str) -> Verdict | None:
    if name in CALLED.get(module, "").split():
        return Verdict("called", module, name)
    if name in MADE.get(module, "").split():
        return Verdict("made", module, name)
    owner, _, attribute = name.rpartition(".")
    storage = module == "torch" and re.fullmatch(r"[A-Z]\w*Storage", name)
    if name in HELD.get(module, "").split() or storage or (owner and may_get(f"{module}.{owner}", attribute)):
        return Verdict("held", module, name)
    family = family_of(module, name)
    return Verdict("made", module, name, family=family) if family else None


def may_be_held(verdict: Verdict) -> bool:
    """May an object hold what `verdict` names, and not just call it while the file is read?"""
    return verdict.fate != "called" or bool(verdict.why) or verdict.name in HELD.get(verdict.module, "").split()


def _left_out(module: str, name: str, code: bool) -> Verdict | None:
    for package, listed, why in LEFT_OUT:
        if (_within(module, package) if listed == "*" else module == package) and _listed(name, listed):
            return Verdict("left out", module, name, why)
    if code and module.partition(".")[0] in ("fastai", "fastcore", "fasttransform"):
        return Verdict("left out", module, name, "function")
    return None


def _unknown(module: str, name: str) -> Verdict:
    package = module.partition(".")[0]
    known = package in sys.stdlib_module_names or package in KNOWN.split() or package in _installed()
    if known or module == NOTEBOOK or UNDERSCORED.search(name) or not package.isidentifier():
        return Verdict("refused", module, name, "no part of an image learner")
    return Verdict("notebook", module, name, "of a module beside the notebook")


def family_of(module: str, name: str) -> Family | None:
    """The family that `name` would belong to if it is a class; a name with a dot belongs to none."""
    if re.fullmatch(r"_{0,2}[A-Z]\w*", name):
        return next((family for family in FAMILIES if _within(module, family.package)), None)
    return None


def may_get(kind: str, attribute: str) -> bool:
    """May `getattr` take `attribute` of the class `kind`?"""
    return attribute in ATTRIBUTES.get(kind, "").split()


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _listed(name: str, names: str) -> bool:
    return name.isidentifier() if names == "*" else name in names.split()


@cache
def _installed() -> frozenset[str]:
    """The top-level names of all installed packages; a module that merely lies in the working folder is none."""
    return frozenset(importlib.metadata.packages_distributions())
