"""What clients get from the served model: raw bytes in, PyTorch's answers and the model's version out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from polyweft.errors import ServingError
from polyweft.export.bundle import read_spec
from polyweft.export.golden import Golden, read_golden
from polyweft.modalities import MODALITIES
from registry.client import Client
from registry.golden import raw
from registry.repository import Repository
from registry.rollout import roll_out
from registry.server import Server
from tests.serving.tiny import CAPTIONS, picture, write_tiny_export

pytestmark = pytest.mark.slow
NAME = "tiny-answers"


@pytest.fixture(scope="module")
def export(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_export(tmp_path_factory.mktemp("export") / "one", seed=1, sees=["image"])
    done = roll_out(server.url, Repository(server.root, NAME), folder)
    assert (done.version, done.previous) == (1, None)
    assert done.largest_difference <= 1e-6
    return folder


@pytest.fixture(scope="module")
def golden(export: Path) -> Golden:
    return read_golden(export / "golden")


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: Server, export: Path) -> Iterator[Client]:
    url = server.url if request.param == "grpc" else server.http_url
    with Client(url, NAME, protocol=request.param, batch_size=3) as client:
        yield client


def test_plain_tritonclient_gets_pytorchs_embeddings_and_the_version(
    server: Server, export: Path, golden: Golden
) -> None:
    chinese = CAPTIONS[1].encode("utf-8")
    for library, url in ((tritonclient.grpc, server.url), (tritonclient.http, server.http_url)):
        client = library.InferenceServerClient(url)
        image = library.InferInput("image", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[golden.contents["image"][0]]], dtype=object))
        text = library.InferInput("text", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[chinese]], dtype=object))
        answer = client.infer("tiny_answers", [image, text])
        for name, row in (("image_embedding", 0), ("text_embedding", 1)):
            expected = golden.expected[name][row]
            assert np.abs(answer.as_numpy(name)[0] - expected).max() <= 1e-4
        assert answer.as_numpy("model_version")[0, 0].decode() == read_spec(export)["export_hash"]
        response = answer.get_response()
        served = response["model_version"] if isinstance(response, dict) else response.model_version
        assert served == "1"
        client.close()


def test_a_batch_larger_than_a_request_is_answered_in_order(client: Client, golden: Golden) -> None:
    answer = client.ask({name: contents * 3 for name, contents in raw(golden).items()})
    for name, expected in golden.expected.items():
        np.testing.assert_allclose(answer.arrays[name], np.tile(expected, (3, 1)), atol=1e-5)


def test_absent_modalities_are_zeros(client: Client) -> None:
    answer = client.ask({"image": [b"", picture(5)], "text": [b"a circle", b""]})
    assert not answer.arrays["image_embedding"][0].any()
    assert not answer.arrays["text_embedding"][1].any()
    np.testing.assert_allclose(np.linalg.norm(answer.arrays["text_embedding"][0]), 1.0, atol=1e-5)
    np.testing.assert_allclose(answer.arrays["probabilities"].sum(axis=1), 1.0, atol=1e-5)


def test_each_side_alone_answers_as_both(client: Client, golden: Golden) -> None:
    image, text = raw(golden)["image"][0], raw(golden)["text"][1]
    both = client.ask({"image": [image], "text": [text]})
    np.testing.assert_allclose(client.embed_images([image])[0], both.arrays["image_embedding"])
    texts, version = client.embed_texts([text.decode()])
    np.testing.assert_allclose(texts, both.arrays["text_embedding"])
    assert version == both.model_version


def test_a_head_that_sees_the_image_classifies_from_it_alone(server: Server, golden: Golden) -> None:
    with tritonclient.grpc.InferenceServerClient(server.url) as client:
        image = tritonclient.grpc.InferInput("image", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[golden.contents["image"][0]]], dtype=object))
        given = client.infer("tiny_answers_image", [image]).as_numpy("probabilities")
    np.testing.assert_allclose(given[0], golden.expected["probabilities"][0], atol=1e-5)


def test_a_truncated_image_is_refused_with_the_reason(client: Client) -> None:
    with pytest.raises(ServingError, match=r"row 0.*truncated"):
        client.embed_images([picture(1)[:200]])
    assert client.embed_images([picture(1)])[0].shape == (1, 4)


def test_a_caption_that_is_not_utf8_is_refused_with_the_reason(client: Client) -> None:
    with pytest.raises(ServingError, match="not UTF-8"):
        client.ask({"image": [picture(1)], "text": [b"\xff\xfe"]})


def test_many_bad_requests_at_once_do_not_bring_the_server_down(server: Server, export: Path) -> None:
    """Two steps that read a request's bytes side by side crashed the server when one of them failed."""
    refused: list[str] = []

    def ask() -> None:
        bad_text, bad_image = [b"a"] * 7 + [b"\xff"], [picture(1)] * 7 + [picture(2)[:300]]
        with Client(server.http_url, NAME, protocol="http", batch_size=8) as client:
            for _ in range(8):
                for images, texts in (([picture(1)] * 8, bad_text), (bad_image, [b"a" * 50_000] * 8)):
                    with pytest.raises(ServingError) as caught:
                        client.ask({"image": images, "text": texts})
                    refused.append(str(caught.value))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.running()
    assert len(refused) == 96
    assert all("not UTF-8" in reason or "truncated" in reason for reason in refused)


def test_a_huge_header_is_refused_and_a_long_caption_is_cut(client: Client) -> None:
    with pytest.raises(ServingError, match=r"over the (pixel )?limit"):
        client.embed_images([_huge_header()])
    assert client.embed_texts(["x" * 10_000])[0].shape == (1, 4)


def test_a_model_that_is_not_served_is_named(server: Server) -> None:
    with Client(server.url, "nobody") as client, pytest.raises(ServingError, match="nobody_text"):
        client.embed_texts(["a"])


def test_what_the_model_does_not_take_is_named(client: Client) -> None:
    with pytest.raises(ServingError, match="takes image, text, not 'audio'"):
        client.ask({"audio": [b"x"]})
    only_image = client.ask({"image": [picture(5)]})
    assert not only_image.arrays["text_embedding"].any()
    with pytest.raises(ServingError, match="no captions"):
        client.describe([picture(5)])


@pytest.fixture(scope="module")
def five(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("five") / "export"
    write_tiny_export(folder, seed=5, modalities=list(MODALITIES), embedding=0)
    assert roll_out(server.url, Repository(server.root, "tiny-five"), folder).largest_difference <= 1e-5
    return folder


def test_every_modality_is_served_from_raw_bytes_without_a_joint_space(server: Server, five: Path) -> None:
    golden = read_golden(five / "golden")
    with Client(server.url, "tiny-five") as client:
        answer = client.ask(raw(golden))
        np.testing.assert_allclose(
            answer.arrays["probabilities"], golden.expected["probabilities"], atol=1e-5
        )
        assert list(answer.arrays) == ["probabilities"]
        for name, contents in raw(golden).items():
            alone = client.ask_alone(name, contents[:1])
            fused = client.ask({name: contents[:1]})
            np.testing.assert_allclose(
                alone.arrays["probabilities"], fused.arrays["probabilities"], atol=1e-5
            )


@pytest.mark.parametrize("name", [name for name in MODALITIES if name != "text"])
def test_a_bad_row_of_any_modality_is_refused_with_its_number(server: Server, five: Path, name: str) -> None:
    good = raw(read_golden(five / "golden"))[name][0]
    with Client(server.url, "tiny-five") as client:
        with pytest.raises(ServingError, match=f"{name} in row 1: .*{name}"):
            client.ask({name: [good, b"no such thing"]})
        assert len(client.ask({name: [good, b""]}).arrays["probabilities"]) == 2


def test_a_captioner_describes_images_and_embeds_both(server: Server, tmp_path: Path) -> None:
    export = write_tiny_export(tmp_path / "export", seed=6, generates=True, classes=0)
    golden = read_golden(export / "golden")
    roll_out(server.url, Repository(server.root, "tiny-captioner"), export)
    with Client(server.url, "tiny-captioner") as client:
        answer = client.ask(raw(golden))
        assert answer.captions == golden.captions
        assert answer.captions[1] == ""
        assert set(answer.arrays) == {"image_embedding", "text_embedding"}
        said, version = client.describe([picture(0)])
        assert said == golden.captions[:1]
        assert version == read_spec(export)["export_hash"]
        assert client.ask_alone("text", [b"a circle"]).captions == []


def _huge_header() -> bytes:
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b""))
