"""What is taken from huggingface_hub; the only file that imports it, and only when a function here is called.

Its own downloader is not used, for it keeps no partial file (huggingface_hub 2.4.0 removes it, so a killed download
begins anew) and its Xet transfer buffers gigabytes. What is used is what a user configures: endpoint, token, offline
mode, cache, proxies and certificates. Source: https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from gemma_export.errors import MissingResourceError, UsageError

__all__ = ["HubSettings", "http_error", "hub_settings", "session"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubSettings:
    """What the environment says about the Hub."""

    # without a slash at its end
    endpoint: str
    # folder of the repositories
    cache: Path
    offline: bool
    # False: files lie in the snapshots themselves
    symlinks: bool
    # never shown; repr leaves it out
    token: str | None = dataclasses.field(repr=False)


def hub_settings() -> HubSettings:
    """Endpoint, cache, offline mode and token, from the usual places.

    Raises:
        MissingResourceError: huggingface_hub is not installed, or the token cannot be had.
        UsageError: HF_ENDPOINT is no URL.
    """
    constants = _library().constants
    endpoint = constants.ENDPOINT.rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise UsageError(
            f"HF_ENDPOINT must begin with https://, found {endpoint[:80]!r}",
            hint="Unset it for huggingface.co, or give the address of your mirror.",
        )
    offline = bool(constants.HF_HUB_OFFLINE)
    return HubSettings(
        endpoint=endpoint,
        cache=Path(constants.HF_HUB_CACHE).expanduser(),
        offline=offline,
        # both settings are younger than release 1.0
        symlinks=not getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False),
        token=None if offline or constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else _token(),
    )


def session() -> Any:
    """The shared HTTP client: httpx's, or that of a package of the same interface in later releases."""
    return _library().get_session()


def http_error() -> type[Exception]:
    """The base of everything that the client raises when no answer comes or an answer breaks off."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__mro__[1]
    return base


def _library() -> Any:
    # read when the library is imported: it would count installed packages and ask the Hub which program runs it
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError as error:
        raise MissingResourceError(
            "huggingface_hub, which reads the Hub's settings, is not installed",
            hint='pip install "gemma-export[export]" brings it; or give --checkpoint a local folder.',
        ) from error
    return huggingface_hub


def _token() -> str | None:
    try:
        token: str | None = _library().get_token()
    except NotADirectoryError:
        # HF_HOME is a file: nobody is logged in, and the cache will say what is wrong
        return None
    except Exception as error:  # noqa: BLE001  the library reads files and may refresh a login over the network
        # the error's own text might quote the token
        raise MissingResourceError(
            f"the Hub token cannot be read ({type(error).__name__})",
            hint="Check HF_HOME and HF_TOKEN_PATH, log in again with `hf auth login`, or set HF_TOKEN.",
        ) from None
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise MissingResourceError(
            "what HF_TOKEN or the login file holds can be no token", hint="Log in again with `hf auth login`."
        )
    return token
