"""Captions from a decoder's logits: greedy, beam search, top-k and nucleus sampling.

It asks for nothing but a function from token ids to the next token's logits, so PyTorch, ONNX Runtime and a
Triton backend generate by the same code. Serving runs this file verbatim: it imports the standard library and
numpy (1.26 and 2) only. A row's answer is a function of its own logits and of the settings; its neighbours in
the batch and its place in it do not count.

Shape suffixes: N rows (inputs to describe), B sequences under way, T tokens so far, V vocabulary, K beams.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

STRATEGIES = ("greedy", "beam", "top_k", "top_p")

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating[Any]]

Step = Callable[[IntArray, IntArray], FloatArray]
"""`step(ids_BT, rows_B) -> logits_BV`: the logits after each sequence. `rows_B` is the row (0 to N - 1) that
each sequence belongs to, by which the function picks that row's image features."""


Search = Generator[IntArray, FloatArray, list[int]]
"""One row's search: it yields the sequences whose next tokens it asks for, int64 (B, T), is sent their
log-probabilities (B, V), and returns the caption. One call of the model answers all rows' searches."""


@dataclass(frozen=True)
class GenerationSpec:
    """How a caption is decoded; it is saved with the model.

    Attributes
    ----------
    strategy
        One of `STRATEGIES`: the likeliest token each time; the best of `beams` paths; a draw among the `k`
        likeliest tokens; a draw among the fewest tokens that hold probability `p`.
    beams
        Paths that beam search keeps.
    k, p
        Of `top_k` (Fan et al., 2018) and `top_p`, the nucleus (Holtzman et al., 2020).
    temperature
        Logits are divided by it before a draw; below 1 sharpens. Greedy and beam search ignore it.
    max_tokens
        A caption has so many tokens at most; start and end are not counted.
    seed
        Of the draws. Every row draws from a generator of its own with this seed.
    length_penalty
        alpha of Wu et al. (2016), eq. 14, for `beam`; 0 compares plain log-probabilities, above 0 favours
        longer captions.
    """

    strategy: str = "greedy"
    beams: int = 1
    k: int = 10
    p: float = 0.9
    temperature: float = 1.0
    max_tokens: int = 20
    seed: int = 0
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy is {self.strategy!r}; expected one of {STRATEGIES}")
        for name in ("beams", "k", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not 0.0 < self.p <= 1.0 or not self.temperature > 0.0:
            raise ValueError(f"p {self.p} must be in (0, 1] and temperature {self.temperature} above 0")
        if self.seed < 0 or self.length_penalty < 0.0:
            raise ValueError(
                f"seed {self.seed} and length_penalty {self.length_penalty} must not be negative"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> GenerationSpec:
        """The inverse of `to_dict`."""
        return cls(**content)


@dataclass(frozen=True)
class Special:
    """The ids around a text: `start` opens it, `end` closes it, `pad` fills up. Captions hold none."""

    start: int
    end: int
    pad: int


def generate(step: Step, rows: int, spec: GenerationSpec, special: Special) -> list[list[int]]:
    """Decode a caption for each of `rows` inputs: lists of token ids without start, end and padding.

    `step` is called with sequences of one length at a time, each beginning with the start id; the longest
    has `spec.max_tokens` ids. A caption that does not end by itself is cut there.

    Raises
    ------
    ValueError
        The logits are not of shape (B, V), or hold a NaN.
    """
    search = _beam_search if spec.strategy == "beam" else _one_path
    searches = {row: search(spec, special) for row in range(rows)}
    asked = {row: next(searching) for row, searching in searches.items()}
    captions: list[list[int]] = [[] for _ in range(rows)]
    while asked:
        rows_B = np.repeat(np.array(list(asked), dtype=np.int64), [len(ids_BT) for ids_BT in asked.values()])
        log_p_BV = _log_softmax(step(np.concatenate(list(asked.values())), rows_B), special)
        asked, before = {}, asked
        for row in before:
            try:
                asked[row] = searches[row].send(log_p_BV[rows_B == row])
            except StopIteration as ended:
                captions[row] = ended.value
    return captions


def _one_path(spec: GenerationSpec, special: Special) -> Search:
    """Greedy and the two ways to draw."""
    caption: list[int] = []
    generator = np.random.Generator(np.random.Philox(spec.seed))
    while len(caption) < spec.max_tokens:
        log_p_V = (yield np.array([[special.start, *caption]], dtype=np.int64))[0]
        token = int(log_p_V.argmax()) if spec.strategy == "greedy" else _draw(log_p_V, spec, generator)
        if token == special.end:
            break
        caption.append(token)
    return caption


def _draw(log_p_V: FloatArray, spec: GenerationSpec, generator: np.random.Generator) -> int:
    """A token among the `k` likeliest, or of the nucleus; of equally likely ones the lower id comes first."""
    order_V = np.argsort(-log_p_V, kind="stable")
    scaled_V = log_p_V[order_V] / spec.temperature
    p_V = np.exp(scaled_V - scaled_V[0])
    p_V /= p_V.sum()
    if spec.strategy == "top_k":
        kept = min(spec.k, len(p_V))
    else:
        kept = min(int(np.searchsorted(p_V.cumsum(), spec.p)) + 1, len(p_V))
    bounds = p_V[:kept].cumsum()
    place = int(np.searchsorted(bounds, generator.random() * bounds[-1], side="right"))
    return int(order_V[min(place, int(np.count_nonzero(p_V[:kept])) - 1)])


def length_factor(length: int, alpha: float) -> float:
    """What a path's log-probability is divided by: ((5 + length) / 6) ** alpha (Wu et al., 2016, eq. 14)."""
    return float(((5.0 + length) / 6.0) ** alpha)


def _beam_search(spec: GenerationSpec, special: Special) -> Search:
    """The path with the best log-probability over `length_factor`, the end token counted in its length.

    A path that ends takes its beam with it (Sutskever et al., 2014), so one beam is greedy. Plain beam search
    can lose the greedy path and then answer with a worse one; here the greedy path always keeps a beam, and
    the answer is at least as good as greedy's.
    """
    best, best_score, ended = list[int](), -np.inf, 0
    paths, log_p_B = [list[int]()], np.zeros(1)
    greedy = 0  # the place of the greedy path in `paths`, -1 once it has ended
    for length in range(1, spec.max_tokens + 1):
        log_p_BV = yield np.array([[special.start, *path] for path in paths], dtype=np.int64)
        total = (log_p_B[:, None] + log_p_BV).ravel()
        wanted = -1 if greedy < 0 else greedy * log_p_BV.shape[1] + int(log_p_BV[greedy].argmax())
        chosen = _likeliest(total, spec.beams - ended, wanted)
        before, paths, alive, greedy = paths, [], [], -1
        for place in chosen:
            source, token = divmod(place, log_p_BV.shape[1])
            path = before[source] if token == special.end else [*before[source], token]
            if token == special.end or length == spec.max_tokens:
                ended += 1
                score = float(total[place]) / length_factor(length, spec.length_penalty)
                best, best_score = (path, score) if score > best_score else (best, best_score)
                continue
            greedy = len(paths) if place == wanted else greedy
            paths.append(path)
            alive.append(place)
        # What is under way only gets less likely, and at best ends with the greatest factor.
        log_p_B = total[alive]
        reach = log_p_B.max(initial=-np.inf) / length_factor(spec.max_tokens, spec.length_penalty)
        if best_score >= reach:
            break
    return best


def _likeliest(total: FloatArray, count: int, wanted: int) -> list[int]:
    """The places of the `count` greatest finite numbers, greatest first; `wanted` is among them if not -1."""
    count = min(count, len(total))
    places = np.flatnonzero(total >= max(np.partition(total, -count)[-count], np.finfo(np.float64).min))
    order = places[np.argsort(-total[places], kind="stable")][:count].tolist()
    if wanted >= 0 and wanted not in order:
        order[-1] = wanted
    return [int(place) for place in order]


def _log_softmax(logits_BV: FloatArray, special: Special) -> npt.NDArray[np.float64]:
    """Log-probabilities float64 over every token but padding and start, which get -inf."""
    if logits_BV.ndim != 2 or np.isnan(logits_BV).any():
        raise ValueError(
            f"the decoder answered with shape {logits_BV.shape} or with NaN; expected finite logits (B, V)"
        )
    out = logits_BV.astype(np.float64)
    out[:, [banned for banned in (special.pad, special.start) if banned != special.end]] = -np.inf
    out -= out.max(axis=1, keepdims=True)
    out -= np.log(np.exp(out).sum(axis=1, keepdims=True))
    return out
