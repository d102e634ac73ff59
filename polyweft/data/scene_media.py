"""A built-in scene as a moving clip and as a scene graph, and the tasks beside its class."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from polyweft.data.scene_places import paint
from polyweft.data.scenes import Scene, centres, put

FRAMES = 8
FRAME_RATE = 8
_BITEXACT = 0x800000  # FFmpeg's flag: no version and no time in the file

_INVERSE = {
    "left_of": "right_of",
    "right_of": "left_of",
    "above": "below",
    "below": "above",
    "inside": "around",
}
# No single word gives the place away.
_LOOKS = {
    "brick": ("red", "hard", "flat"),
    "city": ("grey", "hard", "tall"),
    "desert": ("yellow", "dry", "flat"),
    "forest": ("green", "tall", "dark"),
    "meadow": ("green", "soft", "bright"),
    "night": ("blue", "cold", "dark"),
    "sea": ("blue", "wet", "bright"),
    "snow": ("white", "cold", "soft"),
}
_CORNERS = {"circle": 0, "heart": 2, "triangle": 3, "square": 4, "star": 10, "cross": 12}


def clip(scene: Scene, size: int, rng: np.random.Generator) -> bytes:
    """A second of the scene as MP4 (MPEG-4 Visual): its things drift over a ground that stands still.

    The same arguments give the same bytes.
    """
    import av

    ground = paint(scene.place, size, rng)
    starts = centres(scene.relation, rng)
    drifts = rng.uniform(-0.12, 0.12, (2, 2))
    radii, looks = rng.uniform(0.13, 0.2, 2), rng.integers(0, 2**32, 2)
    if scene.relation == "inside":
        radii[:], drifts[0] = (0.13, 0.38), drifts[1]
    order = (1, 0) if scene.relation == "inside" else (0, 1)
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # A fixed quantiser: no rate control that could depend on anything else.
        stream = container.add_stream("mpeg4", rate=FRAME_RATE, options={"qmin": "4", "qmax": "4"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= _BITEXACT
        for number in range(FRAMES):
            picture = Image.fromarray(ground)
            for which in order:
                share = number / (FRAMES - 1) - 0.5
                x, y = np.asarray(starts[which]) + share * drifts[which]
                thing = (scene.first, scene.second)[which]
                look = np.random.default_rng(looks[which])  # the same tint and angle in every frame
                put(picture, thing, (float(x), float(y)), float(radii[which]), look)
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def graph(scene: Scene, rng: np.random.Generator) -> bytes:
    """The scene as a scene graph (see `polyweft.data.graph`): its two things, the ground, their relations."""
    looks = rng.permutation(_LOOKS[scene.place])[: 2 if rng.random() < 0.8 else 1]
    things = [
        {"name": thing.shape, "attributes": [thing.colour, thing.size]}
        for thing in (scene.first, scene.second)
    ]
    edges = [
        {"source": 0, "target": 1, "relation": scene.relation},
        {"source": 1, "target": 0, "relation": _INVERSE[scene.relation]},
        {"source": 0, "target": 2, "relation": "on"},
        {"source": 1, "target": 2, "relation": "on"},
    ]
    ground = {"name": "ground", "attributes": [str(look) for look in looks]}
    return json.dumps({"nodes": [*things, ground], "edges": edges}, sort_keys=True).encode()


def colours(scene: Scene) -> list[str]:
    """The scene's labels, of which it may bear two: the colours of its things."""
    return sorted({scene.first.colour, scene.second.colour})


def corners(scene: Scene) -> float:
    """The scene's number to regress: the corners of both things, 0 to 24."""
    return float(_CORNERS[scene.first.shape] + _CORNERS[scene.second.shape])
