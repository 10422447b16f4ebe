"""What is taken from huggingface_hub; the only file that imports it, and only when a function here is called.

Its own downloader is not used, for it keeps no partial file (huggingface_hub 2.4.0 removes it, so a killed download
begins anew) and its Xet transfer buffers gigabytes. What is used is what a user configures: endpoint, token, offline
mode, cache, proxies and certificates. Source: https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from gemma_export.errors import HubUnreachableError, MissingResourceError, UsageError

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
    """The shared HTTP client: httpx's, or that of a package of the same interface in later releases.

    Raises:
        HubUnreachableError: proxy or certificates of the environment cannot be used; names the variable.
    """
    library = _library()
    try:
        return library.get_session()
    except Exception as error:
        # made of the environment, each part of which has errors of its own
        raise _unusable_environment(error) from error


def _unusable_environment(error: Exception) -> HubUnreachableError:
    """A client that cannot be made: certificates are files, everything else is an address of a proxy."""
    if isinstance(error, OSError):
        found = _environment("SSL_CERT_FILE") or _environment("SSL_CERT_DIR") or "the system's certificates"
        return HubUnreachableError(
            f"{found} cannot be read as certificates: {error.strerror or error}",
            hint="Set SSL_CERT_FILE to a file of PEM certificates, as your network's administrator gives, or unset it.",
        )
    names = [name for upper in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY") for name in (upper, upper.lower())]
    found = _environment(*names, but=("http://", "https://")) or _environment(*names) or "the system's proxy"
    if isinstance(error, ImportError):
        return HubUnreachableError(
            f"{found}: a SOCKS proxy needs the package socksio, which is not installed",
            hint="pip install socksio; or set the variable to an http:// proxy, or unset it.",
        )
    return HubUnreachableError(
        f"{found} cannot be used as a proxy",
        hint="Set the variable to an address like http://proxy.example:3128, or unset it.",
    )


def _environment(*names: str, but: tuple[str, ...] = ()) -> str:
    """Those of the variables that are set and do not begin as they should, without anybody's password."""
    found = {name: os.environ[name] for name in names if os.environ.get(name)}
    wrong = {name: text for name, text in found.items() if not any(text.startswith(start) for start in but)}
    return ", ".join(f"{name}={re.sub(r'//[^/]*@', '//', text)[:80]!r}" for name, text in wrong.items())


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
