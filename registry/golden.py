"""Hold a served model against its golden queries; what these are stands in `polyweft.export.golden`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyweft.errors import ServingError
from polyweft.export.golden import Golden, differences

if TYPE_CHECKING:
    from registry.client import Client


def ask_golden(client: Client, golden: Golden, *, export_hash: str, tolerance: float) -> float:
    """Ask every golden query end to end, and give the largest difference.

    Raises
    ------
    ServingError
        The server does not answer, another model answered, or an output differs by more than `tolerance`.
    """
    answer = client.ask(raw(golden))
    if answer.model_version != export_hash:
        raise ServingError(
            f"{client.name} was answered by model {answer.model_version[:12]}; expected {export_hash[:12]}"
        )
    found = differences(golden, answer.arrays, answer.captions)
    worst = max(found, key=lambda name: found[name])
    if found[worst] > tolerance:
        raise ServingError(
            f"{client.name}: {worst} differs from PyTorch's answer by {found[worst]:.3g} on the golden "
            f"queries; at most {tolerance:g} is allowed (deploy.tolerance)"
        )
    return found[worst]


def raw(golden: Golden) -> dict[str, list[bytes]]:
    """The queries as clients send them: empty bytes where a modality is absent."""
    return {name: [content or b"" for content in contents] for name, contents in golden.contents.items()}
