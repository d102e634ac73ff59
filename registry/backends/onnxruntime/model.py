"""A Triton backend named "onnxruntime": runs a version's `model.onnx` with the onnxruntime wheel.

It stands in for the official container's C++ backend of the same name, from the same `config.pbtxt`. A
model that cannot run fails its load here, with the reason, and never its first request: Triton's own
`model_warmup` can crash the server when it fails.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

TRITON_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(double)": "TYPE_FP64",
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int8)": "TYPE_INT8",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(bool)": "TYPE_BOOL",
}


class TritonPythonModel:
    """One instance of one version of a model."""

    def initialize(self, args):
        """Open the session, hold the ONNX signature against the configuration, and run it once."""
        config = json.loads(args["model_config"])
        name = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"], args["model_version"], name)
        self.batched = int(config.get("max_batch_size", 0)) > 0
        try:
            self.session = _session(path, config)
        except Exception as error:
            raise pb_utils.TritonModelException(
                f"{path} is not a model that ONNX Runtime can load: {error}"
            ) from error
        self._check_signature(config)
        self._check_run(config)

    def _check_signature(self, config):
        given = {i.name: TRITON_TYPES.get(i.type) for i in self.session.get_inputs()}
        stated = {i["name"]: i["data_type"] for i in config["input"]}
        if given != stated:
            raise pb_utils.TritonModelException(f"the ONNX takes {given}, the configuration states {stated}")
        self.inputs = sorted(stated)
        self.outputs = [o["name"] for o in config["output"]]
        missing = set(self.outputs) - {o.name for o in self.session.get_outputs()}
        if missing:
            raise pb_utils.TritonModelException(f"the ONNX has no output {sorted(missing)}")

    def _check_run(self, config):
        feeds = {}
        for stated in config["input"]:
            dims = [1] * self.batched + [max(int(d), 2) for d in stated["dims"]]
            kind = pb_utils.triton_string_to_numpy(stated["data_type"])
            feeds[stated["name"]] = np.ones(dims, kind)
        try:
            outputs = self.session.run(self.outputs, feeds)
        except Exception as error:
            raise pb_utils.TritonModelException(f"the ONNX failed on a first row of ones: {error}") from error
        for array, stated in zip(outputs, config["output"], strict=True):
            want, got = [int(d) for d in stated["dims"]], list(array.shape[self.batched :])
            if len(want) != len(got) or any(w not in (-1, g) for w, g in zip(want, got, strict=True)):
                raise pb_utils.TritonModelException(
                    f"output {stated['name']} has shape {got}, the configuration states {want}"
                )

    def execute(self, requests):
        """Answer requests; those whose rows have the same shape run as one batch."""
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        groups = {}
        for place, feed in enumerate(feeds):
            alike = tuple(feed[n].shape[1:] for n in self.inputs) if self.batched else place
            groups.setdefault(alike, []).append(place)
        responses = [None] * len(requests)
        for places in groups.values():
            self._run_group(requests, feeds, places, responses)
        return responses

    def _run_group(self, requests, feeds, places, responses):
        try:
            joined = (
                feeds[places[0]]
                if len(places) == 1
                else {name: np.concatenate([feeds[p][name] for p in places]) for name in self.inputs}
            )
            outputs = self.session.run(self.outputs, joined)
        except Exception as error:  # noqa: BLE001 - the client is told
            for place in places:
                fault = pb_utils.TritonError(f"ONNX Runtime failed: {error}")
                responses[place] = pb_utils.InferenceResponse(error=fault)
            return
        begin = 0
        for place in places:
            end = begin + len(feeds[place][self.inputs[0]]) if self.batched else None
            wanted = requests[place].requested_output_names()
            responses[place] = pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, np.ascontiguousarray(array[begin:end]) if self.batched else array)
                    for name, array in zip(self.outputs, outputs, strict=True)
                    if name in wanted
                ]
            )
            begin = end

    def finalize(self):
        """Let the session go."""
        self.session = None


def _session(path, config):
    parameters = {k: v["string_value"] for k, v in (config.get("parameters") or {}).items()}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    # Bytes, not the path: the file may be replaced or removed while this version serves on.
    return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
