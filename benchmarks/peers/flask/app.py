"""Flask and gunicorn, as Flask's documentation deploys it; with VARIANT=learner, the app that one would write first."""

from flask import Flask, request
from PIL import Image

from by_hand import load

app = Flask(__name__)
classify = load()


@app.post("/predict")
def predict() -> dict[str, str]:
    return {"success": classify(Image.open(request.files["image"].stream))}
