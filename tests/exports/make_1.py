"""Export a learner of fastai 1, which cannot be served: make.sh runs this where fastai 1.0.61 is.

python make_1.py PHOTOS FILE
"""

import sys
import types
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import torch
import torch.hub

torch.solve = lambda b, a: (torch.linalg.solve(a, b), None)  # torch 1.13 is younger than fastai 1
moved = types.ModuleType("torchvision.models.utils")
moved.load_state_dict_from_url = torch.hub.load_state_dict_from_url
sys.modules["torchvision.models.utils"] = moved

from fastai.vision import *

photos, file = map(Path, sys.argv[1:])
some = [path for folder in sorted((photos / "train").iterdir()) for path in sorted(folder.iterdir())[:4]]
data = ImageList(some, path=file.parent.absolute()).split_by_rand_pct(0.2, seed=1).label_from_folder()
data = data.transform(get_transforms(), size=32).databunch(bs=8, num_workers=0).normalize(imagenet_stats)
network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
Learner(data, network, metrics=accuracy).export(file.absolute())
