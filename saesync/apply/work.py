"""One SAE on its way through apply: what the plan says of it, what the steps found, and what is published in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saesync import __version__
from saesync.apply.builds import Build
from saesync.digest import FileDigest
from saesync.errors import Inexpressible
from saesync.keys import Inputs
from saesync.measure.metrics import OF_RECONSTRUCTION
from saesync.model import CFG_FILE, WEIGHTS_FILE, Item, Observed, Release, Sae, SourceSpec, Status, StepKind
from saesync.nothing import nothing
from saesync.reason import Reason
from saesync.record import Evidence, Native, SaeRecord
from saesync.targets.base import Upload
from saesync.verdict import judge, misses_of_native, unmeasured

# What each step may use. Only fetch and publish are ever handed the Hub or a target (enforced in ``Steps``); convert, adopt
# and validate run in worker processes, which have neither network nor secrets (enforced by the worker).
USES: Mapping[StepKind, frozenset[str]] = {
    StepKind.CREATE: frozenset({"network", "hf-token"}),
    StepKind.FETCH: frozenset({"network", "hf-token"}),
    StepKind.CONVERT: frozenset({"worker"}),
    StepKind.ADOPT: frozenset({"worker"}),
    StepKind.RELABEL: frozenset(),
    StepKind.MOVE: frozenset(),
    StepKind.VALIDATE: frozenset({"worker", "gpu"}),
    StepKind.PUBLISH: frozenset({"network", "hf-token"}),
    StepKind.CARD: frozenset({"network", "hf-token"}),
    StepKind.DELETE: frozenset({"network", "hf-token"}),
    StepKind.TAG: frozenset({"network", "hf-token"}),
    StepKind.REGISTER: frozenset({"network", "github-token"}),
}
_OVERWRITES = (Status.ABSENT, Status.FOREIGN, Status.DRIFTED)


@dataclass
class Work:
    """Filled in step by step. ``entry`` is the record's entry the SAE starts from: its own, or that of ``item.move_from``.

    ``kept`` are the digests of published files that stay (with the new cfg.json of a relabel among them).
    """

    item: Item
    release: Release
    sae: Sae
    inputs: Inputs
    observed: Observed
    entry: SaeRecord | None
    model_type: str | None = None
    source: Mapping[str, Path] = field(default_factory=nothing)
    published: Path | None = None
    kept: Mapping[str, FileDigest] = field(default_factory=nothing)
    build: Build | None = None
    relabelled: Path | None = None
    adoption: Mapping[str, Any] | None = None
    evidence: Evidence | None = None
    began: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """``release/id``."""
        return self.sae.address

    def has(self, step: StepKind) -> bool:
        """Whether the plan asks for a step."""
        return step in self.item.steps

    @property
    def home(self) -> str:
        """The folder in the target that holds the weights now: its own, or the one it is moved from."""
        return self.item.move_from or self.sae.id

    @property
    def place(self) -> str:
        """Where the weights are now, in words."""
        return f"{self.home} in {self.observed.location}"

    @property
    def home_key(self) -> str:
        """The manifest's key that names that place."""
        return f"{'publish' if self.release.publish is not None else 'records'}.{self.observed.target}"

    @property
    def keeps_weights(self) -> bool:
        """Whether the published weights stay: nothing is built, or what is built only proves a takeover."""
        return self.has(StepKind.ADOPT) or not self.has(StepKind.CONVERT)

    @property
    def unbounded(self) -> bool:
        """Whether nothing that is asked of its numbers would tell that it reads at a wrong hook."""
        require = self.sae.validate.require if self.sae.validate is not None else ()
        return not any(bound.metric in OF_RECONSTRUCTION for bound in require)

    @property
    def stays(self) -> bool:
        """Whether files of it are published already: when it fails, they stay."""
        record = self.observed.records.get(self.release.name)
        return record is not None and self.sae.id in record.saes and bool(record.saes[self.sae.id].files)

    @property
    def may_be_native(self) -> bool:
        """Whether its authors' own files may be published. Not when somebody's published SAE is to be taken over."""
        return self.release.native and not self.has(StepKind.ADOPT)

    @property
    def native(self) -> Native | None:
        """Why what is published are its authors' own files; None unless it turned out so."""
        return self.build.native if self.build is not None else None

    def require_allowed(self, build: Build) -> None:
        """What was kept as it is under another manifest is not published under this one unasked.

        Raises:
            Inexpressible: as it was raised by the conversion.
        """
        if build.native is not None and not self.may_be_native:
            raise Inexpressible(build.native.title, build.native.detail, said_by=build.native.said_by)

    @property
    def stands(self) -> bool:
        """Whether missing a requirement does not stop the SAE: it is published already (by us or by its authors), or it will be
        as its authors' own files, which nothing was measured of."""
        return (
            self.release.evidence_only or self.native is not None or not (self.has(StepKind.CONVERT) or self.has(StepKind.MOVE))
        )

    @property
    def folder(self) -> Path | None:
        """Where the weights to measure are on this disk."""
        if self.keeps_weights:
            return self.published
        return self.build.folder if self.build is not None else None

    @property
    def files(self) -> Mapping[str, FileDigest]:
        """Digests of the files as they will stand in the target."""
        if self.keeps_weights:
            return self.kept
        return self.build.files if self.build is not None else nothing()

    @property
    def weights_sha256(self) -> str | None:
        """Identity of the weights to measure and publish, as far as known."""
        digest = self.files.get(WEIGHTS_FILE)
        return None if digest is None else digest.sha256

    @property
    def misses(self) -> tuple[Reason, ...]:
        """Requirements that the evidence misses or has no number for; where nothing can be measured, why, and each of them."""
        if self.native is not None:
            missed = misses_of_native(self.native, self.sae)
            return missed if len(missed) > 1 else ()
        if self.evidence is None or self.sae.validate is None:
            return ()
        return judge(self.evidence, self.sae.validate.require) + unmeasured(self.evidence, self.sae.validate.require)

    @property
    def may_overwrite(self) -> bool:
        """Whether files in the folder that no record names may be replaced: what the user allows, or an interrupted run left."""
        return self.item.status in _OVERWRITES and bool(self.observed.folder(self.sae.id))

    def upload(self, run: Mapping[str, Any]) -> Upload:
        """What is handed to the target: whole SAEs, or of somebody else's SAE the evidence."""
        if self.release.evidence_only:
            return Upload(self.evidence_only(run))
        record = self.record(run)
        if not self.keeps_weights and self.build is not None:
            return Upload(record, {name: self.build.folder / name for name in record.files})
        if self.relabelled is not None:
            return Upload(record, {CFG_FILE: self.relabelled})
        return Upload(record, copy_from=self.item.move_from)

    def record(self, run: Mapping[str, Any]) -> SaeRecord:
        """The record's entry. ``run`` holds times and rates."""
        if self.has(StepKind.CONVERT):
            proof = {**(self.build.proof if self.build is not None else {}), **(self.adoption or {})}
            earlier = self.entry.evidence if self.entry is not None and self.evidence is not None else ()
            made = SaeRecord(
                self.inputs.weights_key, self.inputs.build_key, self.files, self._flat_inputs(), proof, earlier,
                self.adoption is not None, self._about(), run, self.native,
            )  # fmt: skip
        elif self.entry is None:
            raise ValueError(f"{self.address} has nothing to start from")
        else:
            made = replace(self.entry, run=run)
            if self.relabelled is not None:
                made = replace(
                    made, build_key=self.inputs.build_key, files=self.files, inputs=self._flat_inputs(), about=self._about()
                )
        return made if self.evidence is None else made.with_evidence(self.evidence)

    def evidence_only(self, run: Mapping[str, Any] | None = None) -> SaeRecord:
        """An entry that holds proof and evidence and no files, for SAEs that we do not publish. ``run`` holds times."""
        earlier = self.entry.evidence if self.entry is not None and self.release.evidence_only else ()
        proof = self.build.proof if self.build is not None else nothing()
        made = SaeRecord(
            self.inputs.weights_key, self.inputs.build_key, nothing(), self._flat_inputs(), proof, earlier,
            about=self._about(), run=run or nothing(),
        )  # fmt: skip
        return made if self.evidence is None else made.with_evidence(self.evidence)

    def _flat_inputs(self) -> dict[str, Mapping[str, Any]]:
        return {"weights": self.inputs.weights, "build": self.inputs.build}

    def _about(self) -> dict[str, Any]:
        source = self.sae.source
        return {"saesync": __version__, "model": self.sae.model.label, "hook": self.sae.hook, **_said_of(source)}


def source_said(source: SourceSpec) -> dict[str, Any]:
    """Where a source is, for everybody to read: of a local path only its name."""
    if source.repo is None:
        return {"path": Path(source.path).name}
    return {"repo": source.repo, "revision": source.revision, "path": source.path}


def _said_of(source: SourceSpec | None) -> dict[str, Any]:
    """Where the weights came from; of a local path only its name, for a record is public."""
    if source is None:
        return {}
    if source.repo is None:
        return {"format": source.format, "source": Path(source.path).name}
    return {"format": source.format, "source": f"{source.repo}/{source.path}".rstrip("/"), "source_revision": source.revision}
