"""Every reason code has one wording, in text and in Markdown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from planning import golden

from saesync.reason import ReasonCode
from saesync.render.reasons import _WORDS, reason_markdown, reason_text, reasons_joined

EXAMPLES: list[tuple[ReasonCode, dict[str, Any]]] = [
    (ReasonCode.NOT_PUBLISHED, {"location": "acme/saes"}),
    (ReasonCode.CHANGED, {"name": "validate.tokens", "before": 102400, "after": 204800}),
    (ReasonCode.CHANGED, {"name": "source.digest", "before": "a" * 64, "after": "b" * 64}),
    (ReasonCode.CHANGED, {"name": "validate.prepend_bos", "before": None, "after": True}),
    (ReasonCode.NOT_VISIBLE, {"location": "acme/saes", "detail": "needs a token"}),
    (ReasonCode.NOT_VISIBLE, {"location": "acme/saes"}),
    (ReasonCode.RECORD_NEWER, {"found": 3, "known": 2}),
    (ReasonCode.MADE_NEWER, {"name": "source.converter", "found": 3, "known": 2}),
    (ReasonCode.MADE_NEWER, {"name": "metrics.rows", "found": "1", "known": None}),
    (ReasonCode.RECORD_UNREADABLE, {"detail": "The record is not JSON."}),
    (ReasonCode.TAKEN_BY, {"release": "other"}),
    (ReasonCode.TAKEN_BY, {"release": "other", "asked": True}),
    (ReasonCode.TAKEN_BY, {"release": "other", "asked": True, "pruned": True}),
    (ReasonCode.FOREIGN_FILES, {"files": 1}),
    (ReasonCode.FOREIGN_FILES, {"files": 4}),
    (ReasonCode.FOREIGN_FILES, {"files": 4, "missing": "cfg.json"}),
    (ReasonCode.FILES_CHANGED, {"file": "cfg.json", "recorded": "4be1" * 16, "found": "9c07" * 16}),
    (ReasonCode.FILES_CHANGED, {"file": "cfg.json", "recorded": "4be1" * 16, "found": "9c07" * 16, "asked": False}),
    (ReasonCode.FILES_MISSING, {"file": "cfg.json"}),
    (ReasonCode.MOVED_FROM, {"id": "layer_3"}),
    (ReasonCode.NOT_MEASURED, {"asked": True}),
    (ReasonCode.NOT_MEASURED, {"asked": False}),
    (ReasonCode.METRIC_MISSING, {"metric": "ce_loss_score"}),
    (ReasonCode.NOT_CONVERTIBLE, {"title": "Cannot be expressed in SAELens", "said_by": "k", "detail": "ae.pt holds k."}),
    (ReasonCode.NATIVE_SAES, {"count": 1, "of": 26}),
    (ReasonCode.BELOW_MIN, {"metric": "explained_variance", "value": 0.61, "bound": 0.7}),
    (ReasonCode.BELOW_MIN, {"metric": "explained_variance", "value": 0.69996, "bound": 0.7, "stderr": 0.003}),
    (ReasonCode.ABOVE_MAX, {"metric": "l0", "value": 151.2, "bound": 150.0, "stderr": 0.4}),
    (
        ReasonCode.NO_BASELINE,
        {"metric": "ce_loss_score", "value": 11.0, "bound": 0.95, "ablated": 4.9, "without": 5.0, "stderr": 0.1},
    ),
    (ReasonCode.SOURCE_NOT_HERE, {"path": "/data/ae.pt"}),
    (ReasonCode.SOURCE_NOT_HERE, {"what": "model", "path": "/data/model"}),
    (ReasonCode.SOURCE_UNREACHABLE, {"repo": "acme/raw", "revision": "0b8f" * 10}),
    (ReasonCode.SOURCE_MISSING, {"path": "ae.pt", "detail": "No cfg.json."}),
    (ReasonCode.VISIBILITY, {"asked": "private", "found": "public"}),
    (ReasonCode.REPO_MISSING, {"location": "acme/saes"}),
    (ReasonCode.REPO_RENAMED, {"location": "acme/saes", "now": "acme/new"}),
    (ReasonCode.CARD_CHANGED, {}),
    (ReasonCode.CARD_EDITED, {}),
    (ReasonCode.ORPHAN, {}),
    (ReasonCode.RETIRE, {}),
    (ReasonCode.PRUNE, {}),
    (ReasonCode.ADOPT, {}),
    (ReasonCode.REPLACE, {}),
    (ReasonCode.REPLACE, {"files": 1, "file": "cfg.json", "stay": 0}),
    (ReasonCode.REPLACE, {"files": 3, "file": "cfg.json", "stay": 1}),
    (ReasonCode.REPLACE, {"files": 0, "file": None, "stay": 2}),
    (ReasonCode.NEEDED_BY, {"id": "layer_3"}),
    (ReasonCode.RESUMED, {}),
    (ReasonCode.NOT_IN_THIS_VERSION, {"section": "dashboards"}),
    (ReasonCode.NOT_REGISTERED, {"registry": "decoderesearch/SAELens"}),
    (ReasonCode.NOT_ON_HUB, {"location": "/data/published"}),
    (ReasonCode.AFTER_SAES, {"count": 26, "partial": False}),
    (ReasonCode.AFTER_SAES, {"count": 26, "partial": True}),
    (ReasonCode.AFTER_MERGE, {}),
    (ReasonCode.WAITS_FOR, {"count": 2, "of": 26}),
    (ReasonCode.WAITS_FOR_REVIEW, {"number": 1234, "url": "https://example.org/12", "checks": ""}),
    (ReasonCode.WAITS_FOR_REVIEW, {"number": 12, "url": "https://example.org/12", "checks": "cla/google"}),
    (ReasonCode.BRANCH_PUSHED, {"branch": "saesync/res"}),
    (ReasonCode.DECLINED, {"number": 12, "url": "https://example.org/12"}),
    (ReasonCode.RECORD_BY, {"account": "mallory"}),
    (ReasonCode.RECORD_BY, {"account": None}),
    (ReasonCode.ENTRY_REFUSED, {"detail": "An entry has one repo_id."}),
    (ReasonCode.NEURONPEDIA_TAKEN, {"id": "gemma-2-2b/0-res-acme", "release": "gemma-scope"}),
    (ReasonCode.NOT_TAGGED, {"tag": "saesync-res-4be14be1"}),
    (ReasonCode.NOT_TAGGED, {"tag": None}),
    (ReasonCode.TAG_MOVED, {"tag": "saesync-res-4be14be1", "found": "9c07" * 10, "release": "res"}),
    (ReasonCode.WAITING_FOR_MERGE, {"num": 12, "url": "https://hub/acme/saes/discussions/12", "status": "open"}),
    (ReasonCode.WAITING_FOR_MERGE, {"num": 12, "url": "https://hub/acme/saes/discussions/12", "status": "draft"}),
    (ReasonCode.PULL_CLOSED, {"num": 12, "url": "https://hub/acme/saes/discussions/12"}),
    (ReasonCode.PULL_NEEDS_REPO, {"location": "acme/saes"}),
    (
        ReasonCode.NOT_ALLOWED,
        {"key": "publish.huggingface", "value": "evil/x", "file": "saesync-policy.yaml", "at": "manifests/x.yaml:9:16"},
    ),
    (ReasonCode.NOT_ALLOWED, {"key": "publish.huggingface", "value": "evil/x", "file": "saesync-policy.yaml"}),
]
EVIL = "`|<!-- x -->\u202e\x1b[31m@everyone\n![i](http://b)"


def test_every_code_has_a_wording_and_an_example() -> None:
    assert set(_WORDS) == set(ReasonCode) == {code for code, _ in EXAMPLES}


def test_wordings() -> None:
    reasons = [{"code": str(code), "data": data} for code, data in EXAMPLES]
    lines = [f"{reason['code']}\n  {reason_text(reason)}\n  {reason_markdown(reason)}\n" for reason in reasons]
    golden("reasons.txt", "".join(lines))


@pytest.mark.parametrize("code", list(ReasonCode))
def test_foreign_text_is_inert_and_any_data_is_survived(code: ReasonCode) -> None:
    names = sorted({name for _, data in EXAMPLES for name in data})
    for value in (EVIL, None, 1, 1e999, [EVIL], {"a": EVIL}, True):
        reason = json.loads(json.dumps({"code": str(code), "data": dict.fromkeys(names, value)}))
        text = reason_text(reason)
        assert text.isprintable()
        marked = reason_markdown(reason)
        assert "|" not in marked
        assert "<!--" not in marked
        assert "@everyone" not in marked
        assert "](" not in marked
        assert reason_text({"code": str(code), "data": {}})


def test_a_code_of_a_newer_saesync_is_quoted() -> None:
    assert reason_text({"code": "brand\x1bnew", "data": {}}) == "brand\\x1bnew"


def test_what_stands_in_two_keys_is_said_once() -> None:
    """A model's revision is in the key of the build and in that of the measurement."""

    def changed(name: str) -> dict[str, Any]:
        return {"code": str(ReasonCode.CHANGED), "data": {"name": name, "before": 1, "after": 2}}

    model, tokens, hook = changed("model.revision"), changed("validate.tokens"), changed("hook")
    assert reasons_joined([model, model, tokens], reason_text, 2) == "model.revision 1 → 2; validate.tokens 1 → 2"
    assert reasons_joined([model, model, tokens, hook], reason_text, 2).endswith("validate.tokens 1 → 2; and 1 more")
