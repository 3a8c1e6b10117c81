"""Starting huggingface_hub in an environment that may be wrong: proxies, certificates, numbers."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

from saesync.errors import Missing
from saesync.redaction import redacted

T = TypeVar("T")
_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def library_constants() -> ModuleType:
    """huggingface_hub's settings, which it reads from the environment when it is imported.

    Raises:
        Missing: a variable that has to be a number is none.
    """
    try:
        from huggingface_hub import constants
    except ValueError as error:
        wrong = [name for name in sorted(os.environ) if name.startswith("HF_") and name.endswith("TIMEOUT")]
        detail = f"huggingface_hub reads a number from one of {', '.join(wrong) or 'its variables (HF_...)'}, and it is none."
        raise Missing("Environment variable is not usable", f"{detail} Correct or unset it.") from error
    return constants


def discreet() -> None:
    """No lines or bars of huggingface_hub's own among ours, unless they were asked for (``HF_HUB_VERBOSITY``, ``HF_DEBUG``). What
    it says of requests holds their addresses, and those of uploads are signed. Nor does it warn of a README without front matter:
    there is one but where nothing is published any more, or where it cannot be edited, which we tell."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    if not os.environ.get("HF_HUB_VERBOSITY") and not constants.HF_DEBUG:
        logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        if _unsigned not in handler.filters:
            handler.addFilter(_unsigned)
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled():
        disable_progress_bars()
    warnings.filterwarnings("ignore", message="Warnings while validating metadata in README")


def _unsigned(record: logging.LogRecord) -> bool:
    record.msg, record.args = redacted(re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", record.getMessage())), ()
    return True


def opened(session: Callable[[], T]) -> T:
    """What ``session`` opens.

    Raises:
        Missing: what the environment says of proxies or certificates cannot be followed.
    """
    try:
        return session()
    except ImportError as error:
        detail = f"{_named(_PROXIES)} names a SOCKS proxy, for which a package is missing. Install it: pip install socksio."
        raise Missing("Package is missing", detail) from error
    except OSError as error:
        detail = f"{_named(_CERTIFICATES)} names certificates that cannot be read ({error.strerror or 'not certificates'})."
        raise Missing("Certificates cannot be read", f"{detail} Correct or unset it.") from error
    except Exception as error:
        from httpx2 import InvalidURL

        if not isinstance(error, ValueError | InvalidURL):
            raise
        raise Missing("Proxy is not usable", f"{_named(_PROXIES)} is no address of a proxy. Correct or unset it.") from error


def _named(names: tuple[str, ...]) -> str:
    """Those of the variables that are set; their values may hold a password."""
    spelt = [each for name in names for each in (name, name.lower()) if os.environ.get(each)]
    return " or ".join(spelt) or names[0]
