"""The credentials of requests to the store: found as boto3 finds them, and asked for again when the
store says that they have expired.

A provider of credentials (a profile, a `credential_process`, a role) has troubles of its own. Its
errors are translated here, where it is known which provider failed: once they reach a request
to the store, they would look like an answer of the store.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import botocore.exceptions as boto
import botocore.session
import structlog
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import ClientError

from archiver.core.errors import ArchiverError, StoreError, UsageError

_PROVIDERS = {
    "assume-role": "the role of role_arn in AWS_CONFIG_FILE",
    "assume-role-with-web-identity": "AWS_ROLE_ARN with AWS_WEB_IDENTITY_TOKEN_FILE",
    "config-file": "AWS_CONFIG_FILE",
    "container-role": "the container's role (AWS_CONTAINER_CREDENTIALS_…_URI)",
    "custom-process": "credential_process in AWS_CONFIG_FILE",
    "env": "AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY",
    "iam-role": "the instance's role",
    "login": "the profile's login",
    "shared-credentials-file": "AWS_SHARED_CREDENTIALS_FILE",
    "sso": "the profile's single sign-on",
}
"""What a person can look at, by botocore's name of the provider."""
_MAY_PASS = (
    boto.ConnectionError, boto.CredentialRetrievalError, boto.HTTPClientError,
    boto.MetadataRetrievalError,
    ConnectionError, TimeoutError,
)  # fmt: skip
"""Errors of a provider that may be unreachable; botocore says no more of most."""
log = structlog.get_logger()


class RenewableCredentials(Credentials):
    """Credentials that can be asked for again. Thread-safe. Getting them raises `StoreError` if
    their provider fails."""

    def __init__(self, found: Any, load: Callable[[], Any]) -> None:
        """`found`: botocore's credentials. `load`: asks their provider again; None if it has
        none. Another provider is not asked: its credentials may be for something else."""
        self._found = found
        self._load = load
        self._lock = threading.Lock()
        frozen = self.get_frozen_credentials()
        super().__init__(
            frozen.access_key or "", frozen.secret_key or "", frozen.token, found.method
        )

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """What to sign with now. A role's credentials are refreshed before they expire."""
        found = self._found
        try:
            frozen: ReadOnlyCredentials = found.get_frozen_credentials()
        except Exception as error:
            raise _failed(found.method, error) from None
        return frozen

    def renew(self, refused: ReadOnlyCredentials) -> bool:
        """Find the credentials again, because the store has refused these. Whether there are other
        ones now. Threads that were refused at once find them once."""
        with self._lock:
            if self.get_frozen_credentials() == refused:
                try:
                    self._found = self._load() or self._found
                except ArchiverError as error:
                    if error.reason == "provider":
                        raise  # of any other reason, a file may be incomplete while it is replaced
            if self.get_frozen_credentials() != refused:
                log.info("store.credentials_renewed", provider=self._found.method)
                return True
        return False


class _Resolver:
    """botocore's chain of providers; its credentials are renewable, and its errors are ours."""

    def __init__(self, chain: Any) -> None:
        self._chain = chain

    def load_credentials(self) -> RenewableCredentials | None:
        for provider in self._chain.providers:
            if (found := _load(provider)) is not None:
                return RenewableCredentials(found, partial(_load, provider))
        return None


def _load(provider: Any) -> Any:
    try:
        return provider.load()
    except Exception as error:
        raise _failed(provider.METHOD, error) from None


def prepare(aws: botocore.session.Session) -> None:
    """Have a session find renewable credentials. Raises `UsageError` if AWS's files cannot be read
    or lack the profile of `AWS_PROFILE`."""
    for variable, path in _named_files():
        try:
            if path.exists():  # botocore takes a missing file for an empty one, and others as well
                path.open("rb").close()
        except OSError as error:
            raise UsageError(f"{variable}: {path} cannot be read ({error.strerror})") from None
    try:
        aws.get_scoped_config()
        chain = aws.get_component("credential_provider")
    except boto.BotoCoreError as error:
        raise configuration_error(error) or _failed("", error) from None
    aws.register_component("credential_provider", _Resolver(chain))


def _named_files() -> Iterator[tuple[str, Path]]:
    """AWS's files that the environment names, each with its variable."""
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        if path := os.environ.get(variable):
            yield variable, Path(os.path.expandvars(path)).expanduser()


def no_credentials() -> StoreError:
    """The error if no provider has credentials."""
    missing = [
        f"; {name} names {path}, which is missing"
        for name, path in _named_files()
        if not path.exists()
    ]
    return StoreError(
        "no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod "
        f"a role{''.join(missing)}",
        reason="credentials",
    )


def configuration_error(error: Exception) -> UsageError | None:
    """The error of AWS's variables and files; None if it is another one."""
    if isinstance(error, boto.ProfileNotFound):
        return UsageError(
            f"AWS_PROFILE: no profile {error.kwargs['profile']} in AWS_CONFIG_FILE and "
            "AWS_SHARED_CREDENTIALS_FILE"
        )
    if isinstance(error, boto.ConfigParseError):
        return UsageError(
            f"AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE: {error.kwargs['path']} is not in the "
            "form of AWS's files"
        )
    if isinstance(error, boto.InvalidConfigError):
        return UsageError(f"AWS_CONFIG_FILE: {' '.join(str(error).split())[:200]}")
    return None


def _failed(method: str, error: Exception) -> ArchiverError:
    """The error for a provider that failed. What it says may have secrets, so it is not told."""
    if isinstance(error, ArchiverError):
        return error
    if isinstance(error, boto.PartialCredentialsError):
        lacking = str(error.kwargs["cred_var"]).upper()
        where = "the environment" if method == "env" else _named(method)
        return StoreError(
            f"no S3 credentials: {lacking} is missing in {where}", reason="credentials"
        )
    if (of_settings := configuration_error(error)) is not None:
        return of_settings
    what, may_pass = type(error).__name__, isinstance(error, _MAY_PASS)
    if isinstance(error, ClientError):
        what = str(error.response.get("Error", {}).get("Code", what))[:64]
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        may_pass = status == 429 or status >= 500 or what.startswith("Throttl")
    elif isinstance(error, OSError):
        what = error.strerror or what
    return StoreError(
        f"no S3 credentials: {_named(method)} failed ({what})",
        reason="provider",
        retryable=may_pass,
    )


def _named(method: str) -> str:
    return _PROVIDERS.get(method, method or "AWS's configuration")
