"""What the Hub's refusals mean for a user."""

from __future__ import annotations

from gemma_export.checkpoint.hub.names import nearest_repository
from gemma_export.errors import (
    CheckpointError,
    GemmaExportError,
    HubUnreachableError,
    MissingResourceError,
    NotTheHubError,
)

__all__ = [
    "gated",
    "incomplete_cache",
    "no_repository",
    "no_revision",
    "not_the_hub",
    "refused",
    "refused_elsewhere",
    "wrong_content",
]

_LOGIN = "run `hf auth login`, or set HF_TOKEN"


def gated(repository: str, page: str, said: str, *, with_token: bool) -> GemmaExportError:
    """A repository whose licence must be accepted.

    Args:
        repository: ORG/NAME.
        page: its page, where the licence is.
        said: the server's own words, or nothing.
        with_token: whether a token was sent.
    """
    if with_token:
        return MissingResourceError(
            f"{repository} is gated, and the account of your token was not granted access{said}",
            hint=f"Accept the licence at {page} with the account that the token belongs to (a fine-grained token also "
            "needs the right to read gated repositories).",
        )
    return MissingResourceError(
        f"{repository} is gated: its licence must be accepted first, and no token was found",
        hint=f"Accept the licence at {page}, then {_LOGIN}, and run the command again.",
    )


def no_repository(repository: str, *, with_token: bool) -> GemmaExportError:
    """There is none, or it is private."""
    near = nearest_repository(repository)
    suggestion = f"; did you mean {near}?" if near else ""
    private = "the token's account must be able to read it" if with_token else _LOGIN
    return MissingResourceError(
        f"{repository} is neither a local folder nor a repository on the Hub that can be seen{suggestion}",
        hint=f"Check the spelling; if the repository is private, {private}.",
    )


def no_revision(repository: str, revision: str, page: str) -> GemmaExportError:
    """The repository exists, the revision does not, or no longer."""
    return MissingResourceError(
        f"{repository} has no revision {revision!r}: it was deleted, moved away or never existed",
        hint=f"{page}/commits/main lists the commits; leave the revision out for the newest.",
    )


def refused(repository: str, status: int, said: str) -> GemmaExportError:
    """Any other refusal: a bad token, a disabled repository, a status nobody expects."""
    if "credentials" in said:
        return MissingResourceError(
            f"the Hub does not accept your token{said}",
            hint=f"It is wrong or has expired: {_LOGIN} with a new one (https://huggingface.co/settings/tokens).",
        )
    return MissingResourceError(
        f"the Hub refused {repository} with status {status}{said}",
        hint="Look at the repository's page with the account that your token belongs to.",
    )


def refused_elsewhere(host: str, repository: str, status: int, said: str) -> GemmaExportError:
    """A refusal of the server that the Hub sends to for a file."""
    return MissingResourceError(
        f"{host}, where the Hub keeps files of {repository}, refused one with status {status}{said}",
        hint=f"Run the same command again: it resumes. If it stays so, the network or its proxy may block {host}.",
    )


def not_the_hub(url: str, what: str) -> NotTheHubError:
    """Says where something else answered, and with what."""
    return NotTheHubError(
        f"{url} answered with {what}: something between this machine and the Hub answered in its place",
        hint="Log in to the network, or set HTTPS_PROXY or HF_ENDPOINT as your network needs; then run again.",
    )


def wrong_content(name: str, what: str) -> GemmaExportError:
    """A file that is not what the Hub says it is; it never enters the cache."""
    return CheckpointError(
        f"{name}: {what}",
        hint="Run the same command again: it fetches the file anew. If it fails again, a proxy changes the data or the "
        "repository is damaged.",
    )


def incomplete_cache(
    repository: str, revision: str, reason: str, what: str, *, remedy: str | None, option: str
) -> GemmaExportError:
    """Not online, and not everything is cached.

    Args:
        repository, revision: as asked for.
        reason: why the Hub is not asked.
        what: what the cache lacks.
        remedy: what may bring the connection back, where one was tried.
        option: of the command line that takes the files, copied here.
    """
    name = repository.rsplit("/", 1)[-1]
    return HubUnreachableError(
        f"{repository} at {revision}: {reason}, and the cache has no complete copy: {what}",
        hint=f"{remedy or 'Run the same command once with a connection (it resumes).'} Or on a connected machine run "
        f"`hf download {repository} --revision {revision} --local-dir {name}`, copy that folder here and give it to "
        f"{option}.",
    )
