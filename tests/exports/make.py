"""Export small learners of every kind with the fastai that is installed, and note what its own `learner.predict` says.

    python make.py PHOTOS FOLDER [KIND…]

PHOTOS holds train/CLASS/ and validation/CLASS/; FOLDER gets KIND.pkl and answers.json. Written to run
unchanged on fastai2 0.0.30 and on fastai 2.0 to 2.8; make.sh has the environments. It is run as a script, so what it
defines is `__main__`'s, as a notebook's functions are.
"""

import builtins
import contextlib
import io
import json
import random
import sys
import types
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import torch
import torch.hub

# Where an old fastai meets torch 1.13, which is younger: the names it expects.
if torch.__version__.startswith("1."):
    for name in ("H", "mH", "mT"):  # fastai 2.0 reads every attribute of a vector
        setattr(torch.Tensor, name, property(lambda self: None))
    moved = types.ModuleType("torchvision.models.utils")
    moved.load_state_dict_from_url = torch.hub.load_state_dict_from_url
    sys.modules["torchvision.models.utils"] = moved
    if not hasattr(builtins, "get_ipython"):  # fastai2 thinks of nothing but notebooks
        builtins.get_ipython = lambda: types.SimpleNamespace()

try:
    import fastai
    from fastai.callback.tracker import SaveModelCallback
    from fastai.vision.all import *
except ImportError:
    import fastai2 as fastai
    from fastai2.callback.tracker import SaveModelCallback
    from fastai2.vision.all import *

if torch.__version__.startswith("1."):
    loader = sys.modules[DataLoader.__module__]._FakeLoader
    loader.pin_memory_device, loader.persistent_workers = "", False  # torch asks for them since 1.12 and 1.7
    if fastai.__version__ < "2.1":  # as torch 1.6 was
        TensorBase.__torch_function__ = torch._C._disabled_torch_function_impl
        whole = torch.as_subclass
        torch.as_subclass = lambda tensor, cls: tensor if type(tensor) is cls else whole(tensor, cls)
    torch.solve = lambda b, a: (torch.linalg.solve(a, b), None)
    torch.Tensor.__format__ = lambda self, spec: format(self.item() if self.dim() == 0 else str(self), spec)

SIDE = 64
EACH = 25  # photos of a class to train on
ASKED = 4  # photos of a class to answer for
EPOCHS = 20
LEGS = ("pants", "shorts", "skirt", "shoes")


def label_of(path):
    return path.parent.name


def is_on_legs(path):
    return path.parent.name in LEGS


def tags_of(path):
    return [path.parent.name, "legs" if path.parent.name in LEGS else "body"]


def half_right(inp, targ):
    return (inp.argmax(dim=-1) == targ).float().mean() / 2


class CountSteps(Callback):
    "A callback of the notebook's that only looks on."

    def __init__(self):
        self.steps = 0

    def after_batch(self):
        self.steps += 1


def tiny(pretrained=False):
    """A narrow residual network, in the shape that fastai cuts into body and head."""
    blocks = [ResBlock(1, 8, 8, stride=2), ResBlock(1, 8, 16, stride=2)]
    return nn.Sequential(ConvLayer(3, 8, stride=2), *blocks, nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(16, 10))


def network(outputs):
    body = nn.Sequential(*list(tiny().children())[:-3])
    for features in (16, 32):  # which of the two create_head expects changed when it learnt of concat pooling
        model = nn.Sequential(body, create_head(features, outputs, lin_ftrs=[16])).eval()
        with contextlib.suppress(RuntimeError):
            model(torch.zeros(2, 3, SIDE, SIDE))
            return model.train()


def files(photos):
    chosen = []
    for part, share in (("train", EACH), ("validation", ASKED)):
        for folder in sorted((Path(photos) / part).iterdir()):
            chosen += sorted(folder.iterdir())[:share]
    return chosen


def in_validation(path):
    return Path(path).parent.parent.name == "validation"


def data(photos, item_tfms, batch_tfms=None, target=CategoryBlock, get_y=parent_label, image=ImageBlock):
    block = DataBlock(
        blocks=(image, target),
        splitter=FuncSplitter(in_validation),
        get_y=get_y,
        item_tfms=item_tfms,
        batch_tfms=batch_tfms if batch_tfms is not None else aug_transforms(),
    )
    return block.dataloaders(files(photos), bs=32, num_workers=0, path=Path(photos).parent)


def learner(dls, outputs=10, **options):
    return Learner(dls, network(outputs), **{"metrics": accuracy, **options})


def version():
    return tuple(int(part) for part in fastai.__version__.split(".")[:2])


def plain(photos):
    make = globals().get("vision_learner") or cnn_learner
    dls = data(photos, Resize(SIDE))
    options = {"config": cnn_config(lin_ftrs=[16])} if version() < (2, 3) else {"lin_ftrs": [32]}
    return make(
        dls, tiny, pretrained=False, cut=-3, loss_func=CrossEntropyLossFlat(), metrics=[accuracy, error_rate], **options
    )


def presizing(photos):
    return learner(
        data(photos, Resize(96), [*aug_transforms(size=SIDE, min_scale=0.75), Normalize.from_stats(*imagenet_stats)])
    )


def squish(photos):
    return learner(data(photos, Resize(SIDE, method="squish"), aug_transforms(max_warp=0)))


def pad(photos):
    return learner(
        data(photos, Resize(SIDE, ResizeMethod.Pad, pad_mode=PadMode.Zeros), [Normalize.from_stats(*imagenet_stats)])
    )


def random_resized_crop(photos):
    return learner(data(photos, RandomResizedCrop(SIDE, min_scale=0.5)), loss_func=LabelSmoothingCrossEntropy())


def function_in_main(photos):
    return learner(data(photos, Resize(SIDE), get_y=label_of), metrics=[accuracy, half_right])


def bool_labels(photos):
    return learner(data(photos, Resize(SIDE), get_y=is_on_legs), outputs=2)


def multi_label(photos):
    dls = data(photos, Resize(SIDE), target=MultiCategoryBlock, get_y=tags_of)
    return learner(
        dls,
        12,
        metrics=partial(accuracy_multi, thresh=0.4),
        loss_func=BCEWithLogitsLossFlat(thresh=0.4) if version() > (2, 1) else BCEWithLogitsLossFlat(),
    )


def timm_network(photos):
    from timm.models.densenet import DenseNet

    model = DenseNet(growth_rate=8, block_config=(2, 2), num_classes=10)
    return Learner(data(photos, Resize(SIDE)), model, loss_func=CrossEntropyLossFlat(), metrics=accuracy)


def timm_transformer(photos):
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=SIDE, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=10)
    return Learner(data(photos, Resize(SIDE)), model, loss_func=CrossEntropyLossFlat(), metrics=accuracy)


def user_callbacks(photos):
    return learner(
        data(photos, Resize(SIDE)), cbs=[CountSteps(), SaveModelCallback(monitor="train_loss", fname="best")]
    )


def half_precision(photos):
    return learner(data(photos, Resize(SIDE)))


KINDS = {
    "plain": plain,
    "presizing": presizing,
    "squish": squish,
    "pad": pad,
    "random-resized-crop": random_resized_crop,
    "function-in-main": function_in_main,
    "bool-labels": bool_labels,
    "multi-label": multi_label,
    "timm": timm_network,
    "timm-transformer": timm_transformer,
    "user-callbacks": user_callbacks,
    "to-fp16": half_precision,
}


def seed(number=3):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def export(photos, folder, kind):
    seed()
    learn = KINDS[kind](photos)
    learn.path = Path(folder)
    with contextlib.redirect_stdout(io.StringIO()):  # with its bars, which travel in the export
        learn.fit_one_cycle(EPOCHS, 1e-3 if kind == "timm-transformer" else 8e-3)
    if kind == "to-fp16":
        learn.to_fp16()
    learn.export(kind + ".pkl")
    (learn.path / "models" / "best.pth").unlink() if kind == "user-callbacks" else None
    return learn.path / (kind + ".pkl")


def ask(path, photos):
    """What this fastai itself says of each photo: {photo: [label or labels, probabilities]}."""
    learn = load_learner(path)
    answers = {}
    for photo in [photo for photo in files(photos) if in_validation(photo)]:
        with learn.no_bar():
            decoded, _, probabilities = learn.predict(str(photo))
        decoded = decoded if isinstance(decoded, str) else [str(label) for label in decoded]
        answers["/".join(photo.parts[-2:])] = [decoded, [round(float(p), 7) for p in probabilities]]
    return answers


def main(photos, folder, *kinds):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "answers.json"
    answers = json.loads(notes.read_text()) if notes.exists() else {}
    for kind in kinds or KINDS:
        path = export(photos, folder, kind)
        answers[kind] = ask(path, photos)
        print(kind, path.stat().st_size, fastai.__version__, flush=True)
        notes.write_text(json.dumps(answers, sort_keys=True, separators=(",", ":")))


if __name__ == "__main__" and len(sys.argv) > 2:
    main(*sys.argv[1:])
