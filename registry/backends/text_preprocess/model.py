"""Caption bytes to token ids on the server, by the version's own verbatim copy of `polyweft/data/text.py`.

`text` [rows, 1] holds UTF-8; an empty string means that the row has no text. Answers `input_ids` int64
[rows, max_tokens] (always padded to the full length, so that requests batch), `present` float32 [rows, 1]
and `model_version`, the export's hash, [rows, 1]. The optional input `image_present` is not read: an ensemble
of both sides passes it so that this step begins after the image's.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

os.environ["TOKENIZERS_PARALLELISM"] = "false"


class TritonPythonModel:
    """One instance of one version."""

    def initialize(self, args):
        """Import this version's text.py and load its tokenizer."""
        folder = Path(args["model_repository"], args["model_version"])
        sys.path.insert(0, str(folder))
        import text

        model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.tokenizer = text.TextTokenizer.load(folder)
        self.version = model["export_hash"].encode()

    def execute(self, requests):
        """Answer each request on its own: one with bytes that are not UTF-8 fails alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        contents = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        texts = []
        for row, content in enumerate(contents):
            try:
                texts.append(content.decode("utf-8"))
            except UnicodeDecodeError as error:
                fault = pb_utils.TritonError(f"text in row {row} is not UTF-8: {error}; send UTF-8 bytes")
                return pb_utils.InferenceResponse(error=fault)
        ids = self.tokenizer.encode(texts, length=self.tokenizer.max_tokens)
        present = np.array([[float(bool(content))] for content in contents], np.float32)
        version = np.full((len(contents), 1), self.version, dtype=object)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("input_ids", ids),
                pb_utils.Tensor("present", present),
                pb_utils.Tensor("model_version", version),
            ]
        )
