"""Pigeonhole: drop in the export.pkl that fastai wrote, get a small, fast, safe image-classification service.

The map, and the direction of imports (left may import right, never back):

    app.py  ->  web  ->  model, intake  ->  errors, settings

    errors      what can go wrong: a status, a stable code, a sentence
    settings    what can be set, from the environment, checked once
    intake      getting a picture: hostile bytes in, an upright RGB picture out
    model       from picture to Prediction; the only rooms where torch and fastai are imported, and late
    web         the only rooms that import Flask
"""

__version__ = "0.1.0"
