"""What an answer of the Hub says besides its status: how long to wait, why it refuses, where a repo went."""

from __future__ import annotations

import email.utils
import re
import time
from typing import TYPE_CHECKING

from saesync.redaction import redacted

if TYPE_CHECKING:
    import httpx2


def wait_of(response: httpx2.Response) -> float | None:
    """Seconds an answer asks to wait. A date is told by the server's own clock, which need not be ours."""
    try:
        now = email.utils.parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
    except (ValueError, OverflowError):
        now = None
    ratelimit = response.headers.get("RateLimit") if response.status_code == 429 else None
    return asked_wait(response.headers.get("Retry-After"), ratelimit, now)


def asked_wait(retry_after: str | None, ratelimit: str | None, now: float | None = None) -> float | None:
    """Seconds a server asks to wait: ``Retry-After`` (seconds or an HTTP date, RFC 9110 10.2.3), else the reset time of a used-up
    ``RateLimit`` window (``"api";r=0;t=55``)."""
    if retry_after is not None:
        if retry_after.strip().isdigit():
            return float(retry_after)
        try:
            at = email.utils.parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        return max(0.0, at.timestamp() - (time.time() if now is None else now))
    found = re.search(r";\s*r=0\s*;\s*t=(\d+)", ratelimit or "")
    return None if found is None else float(found[1])


def renamed_to(response: httpx2.Response, kind: str) -> str | None:
    """The name a repo was moved to, from a redirect of one of its addresses; None when the address is not a repo's."""
    location = response.headers.get("Location", "")
    path = re.sub(r"^https?://[^/]+", "", location).split("?")[0]
    found = re.match(rf"^/api/{kind}s/([\w.-]+(?:/[\w.-]+)?)(?:/(?:revision|tree|refs|commits|auth-check)\b.*)?$", path)
    if found is None:
        prefix = "" if kind == "model" else f"{kind}s/"
        found = re.match(rf"^/{prefix}([\w.-]+(?:/[\w.-]+)?)/resolve/", path)
    return None if found is None else found[1]


def reason_in(response: httpx2.Response, token: str | None) -> str:
    """The server's short message, safe to show: one printable line, never the token, never an address that may be signed."""
    text = response.headers.get("X-Error-Message") or _in_body(response)
    line = "".join(character if character.isprintable() else " " for character in text)
    line = redacted(line if not token else line.replace(token, "***"))
    line = re.sub(r"(https?://[^\s?]*)\?\S*", r"\1", line).strip().rstrip(".")
    return f": {line[:300]}" if line else ""


def _in_body(response: httpx2.Response) -> str:
    """The reason in a JSON body: object stores, proxies and some of the Hub's own routes give it nowhere else."""
    try:
        found = response.json()
    except (ValueError, RecursionError, RuntimeError):  # not JSON, or not read
        return ""
    if isinstance(found, dict) and isinstance(several := found.get("errors"), list) and several:
        found = several[0]
    told = (found.get("error"), found.get("message")) if isinstance(found, dict) else ()
    return next((text for text in told if isinstance(text, str)), "")
