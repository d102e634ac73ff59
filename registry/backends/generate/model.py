"""An image's features to a caption, by the version's decoder and verbatim copies of the library's own code.

`image_features` float32 [rows, positions, size] and `image_present` float32 [rows, 1] go to `caption`
[rows, 1], UTF-8, which is empty where there is no image. How captions are decoded stands in the version's
model.json.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

os.environ["TOKENIZERS_PARALLELISM"] = "false"


class TritonPythonModel:
    """One instance of one version."""

    def initialize(self, args):
        """Import the version's code, open its decoder, and run it once."""
        folder = Path(args["model_repository"], args["model_version"])
        model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        config = json.loads(args["model_config"])
        text = model["inputs"]["text"]
        self.ids = text["tensor"]
        self.generation = _module(folder / "generation.py")
        self.tokenizer = _module(folder / text["module"]).Reader(text["spec"], folder).tokenizer
        self.spec = self.generation.GenerationSpec.from_dict(model["generation"])
        self.special = self.generation.Special(
            self.tokenizer.start_id, self.tokenizer.end_id, self.tokenizer.pad_id
        )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
        try:
            # Bytes, not the path: the file may be replaced or removed while this version serves on.
            content = (folder / "decoder.onnx").read_bytes()
            self.session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            self._captions(
                np.zeros((1, *(2 if size < 0 else size for size in model["features"]["image"])), np.float32)
            )
        except Exception as error:
            raise pb_utils.TritonModelException(
                f"{folder / 'decoder.onnx'} is not a decoder that ONNX Runtime can run: {error}"
            ) from error

    def execute(self, requests):
        """Answer each request on its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        features = pb_utils.get_input_tensor_by_name(request, "image_features").as_numpy()
        there = pb_utils.get_input_tensor_by_name(request, "image_present").as_numpy()[:, 0] > 0
        answer = np.full((len(there), 1), b"", dtype=object)
        try:
            answer[there, 0] = [text.encode("utf-8") for text in self._captions(features[there])]
        except Exception as error:  # noqa: BLE001 - the client is told
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"the decoder failed: {error}"))
        return pb_utils.InferenceResponse([pb_utils.Tensor("caption", answer)])

    def _captions(self, features):
        def step(ids, rows):
            length = ids.shape[1]
            # The exported decoder takes two positions at least; what follows a position does not count.
            padded = np.pad(ids, ((0, 0), (0, max(0, 2 - length))), constant_values=self.special.pad)
            feed = {self.ids: padded, "image_features": np.ascontiguousarray(features[rows])}
            return self.session.run(["logits"], feed)[0][:, length - 1]

        found = self.generation.generate(step, len(features), self.spec, self.special)
        return [self.tokenizer.decode(ids) for ids in found]

    def finalize(self):
        """Let the session go."""
        self.session = None


def _module(path):
    """Import a file under a name of its own: `text` or `graph` may stand for something else on the path."""
    specification = importlib.util.spec_from_file_location(f"polyweft_served_{path.stem}", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their own module up while they are made
    specification.loader.exec_module(module)
    return module
