"""FastAPI and uvicorn. The endpoint is a plain `def`, as FastAPI recommends for what computes: it runs in a thread."""

from typing import Annotated

from fastapi import FastAPI, File, UploadFile
from PIL import Image

from by_hand import load

app = FastAPI()
classify = load()


@app.post("/predict")
def predict(image: Annotated[UploadFile, File()]) -> dict[str, str]:
    return {"success": classify(Image.open(image.file))}
