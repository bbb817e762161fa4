"""MLServer: a custom runtime, as its documentation writes one. It speaks the Open Inference Protocol.

Photos come as base64 in JSON. Models run in processes of their own (`parallel_workers`), one per core.
"""

import io

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from PIL import Image

from by_hand import load


class Classifier(MLModel):
    async def load(self) -> bool:
        self.classify = load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (photo,) = Base64Codec.decode_input(payload.inputs[0])
        label = self.classify(Image.open(io.BytesIO(photo)))
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("label", [label])])
