"""What the shell's completion offers, asked as bash asks."""

from __future__ import annotations

from cli_support import Place


def offered(place: Place, *words: str) -> list[str]:
    line, at = " ".join(("saesync", *words)), str(len(words))
    done = place.run(COMP_WORDS=line, COMP_CWORD=at, _SAESYNC_COMPLETE="bash_complete")
    assert done.err == ""
    return [line.partition(",")[2] for line in done.out.splitlines() if line]


def test_commands_formats_and_addresses_are_completed(cold: Place) -> None:
    assert offered(cold, "pl") == ["plan"]
    assert offered(cold, "plan", "--format", "mark") == ["markdown"]
    assert offered(cold, "convert", "a", "b", "--from", "gemma_scope") == ["gemma_scope", "gemma_scope_2", "gemma_scope_2_clt"]
    assert offered(cold, "doctor", "sae", "a", "--from", "openai") == ["openai"]
    addresses = offered(cold, "show", "t")
    assert len(addresses) == 5
    assert all(address.startswith("t") and "/" in address for address in addresses)


def test_without_manifests_nothing_is_offered_and_nothing_is_said(cold: Place) -> None:
    assert offered(cold, "show", "--manifests", "nowhere", "t") == []
