"""Ray Serve, with FastAPI for what comes by HTTP, as its documentation does it. One replica has both cores.

It runs on this machine alone, without the dashboard. HTTP comes in on loopback; processes of Ray's own listen on all
addresses, whatever they are told, and ask for a token that is made at each start.
"""

import os
from typing import Annotated

import ray
from fastapi import FastAPI, File, UploadFile
from PIL import Image
from ray import serve

from by_hand import load

app = FastAPI()
CORES = len(os.sched_getaffinity(0))


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": CORES})
@serve.ingress(app)
class Classifier:
    def __init__(self) -> None:
        self.classify = load()

    @app.post("/predict")
    def predict(self, image: Annotated[UploadFile, File()]) -> dict[str, str]:
        return {"success": self.classify(Image.open(image.file))}


if __name__ == "__main__":
    ray.init(
        num_cpus=CORES,
        include_dashboard=False,
        _node_ip_address="127.0.0.2",  # loopback too; Ray takes 127.0.0.1 for the address that others reach
        _temp_dir=os.environ["FOLDER"],
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Classifier.bind(), blocking=True)
