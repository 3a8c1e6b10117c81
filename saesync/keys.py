"""The three keys of an SAE: identities of its weights, of the published folder, and of its numbers. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from saesync.digest import canonical
from saesync.model import Json, Sae
from saesync.reason import Reason
from saesync.record import Evidence


@dataclass(frozen=True)
class Inputs:
    """What the three keys are made of, kept flat (dotted names) so that a difference can be named.

    ``weights``: source digest, format, converter version, options, dtype, cfg fields that change the function.
    ``build``: the rest of cfg and metadata. ``measure``: hook, model, dataset, tokens, context, BOS, dtype and
    the versions of metric definitions; None without a ``validate`` section. Thresholds stand in none of them.
    """

    weights: Mapping[str, Json]
    build: Mapping[str, Json]
    measure: Mapping[str, Json] | None

    @cached_property
    def _weights(self) -> bytes:
        return canonical(dict(self.weights))

    def _key(self, name: str | None = None, part: Mapping[str, Json] | None = None) -> str:
        """``key_of`` the weights' inputs and one part that sorts before them; the weights' canonical form is made once."""
        before = b"" if name is None or part is None else b'"%s":%s,' % (name.encode(), canonical(dict(part)))
        return hashlib.sha256(b'{%s"weights":%s}' % (before, self._weights)).hexdigest()

    @cached_property
    def weights_key(self) -> str:
        """Identity of the weights' bytes."""
        return self._key()

    @cached_property
    def build_key(self) -> str:
        """Identity of the published folder: weights, cfg and metadata."""
        return self._key("build", self.build)

    @cached_property
    def measure_key(self) -> str | None:
        """Identity of the numbers: weights and all that they were measured with."""
        if self.measure is None:
            return None
        return self._key("measure", self.measure)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One SAE with its keys. ``inputs`` is None when they cannot be known, and ``blocked`` then says why.

    ``not_here`` names a local source, model or dataset that is not on this machine: the keys use the record's digest of it.
    ``evidence`` is what the cache or ``records:`` knows under this measure_key (passing or failing), if anything.
    """

    sae: Sae
    inputs: Inputs | None
    blocked: Reason | None = None
    not_here: Reason | None = None
    evidence: Evidence | None = None
