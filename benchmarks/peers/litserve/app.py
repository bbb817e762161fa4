"""LitServe: each worker process loads the model and answers one photo at a time; here there is one per core."""

import os

import litserve
from PIL import Image

from by_hand import load


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.classify = load()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # a form comes if no type is asked for
        return Image.open(request["image"].file)

    def predict(self, picture: Image.Image) -> str:
        return self.classify(picture)

    def encode_response(self, output: str) -> dict[str, str]:
        return {"success": output}


if __name__ == "__main__":
    cores = len(os.sched_getaffinity(0))
    server = litserve.LitServer(Classifier(), accelerator="cpu", workers_per_device=cores, timeout=300)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False)
