"""Translates the errors of boto3 and the HTTP client into `StoreError`: one line that says what to
do.

Rules:
- A message contains nothing of the answer's body but its error code (64 characters): a body may
  contain anything.
- A refusal of one request reaches its object only (`Reach.ITEM`): another key or prefix may be
  accepted. An error which shows that no request can succeed (credentials, clock, bucket, network)
  reaches the store.
- Throttling, server errors and lost connections are retryable; other refusals are not. A pause that
  the store asks for (`Retry-After`) goes into `retry_after_seconds`.
"""

from __future__ import annotations

from typing import NamedTuple

import botocore.exceptions as boto
from botocore.exceptions import ClientError
from urllib3.exceptions import HTTPError

from archiver.core.errors import KeyTaken, Reach, StoreError, UsageError
from archiver.core.http import TransportError, retry_after_seconds
from archiver.core.retry import LONGEST_WAIT_SECONDS
from archiver.store.credentials import configuration_error, no_credentials

_UNREACHABLE = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
    HTTPError,
    TransportError,
    OSError,
)
_OF_SETTINGS = (
    boto.BaseEndpointResolverError,
    boto.EndpointProviderError,
    boto.InvalidDNSNameError,
    boto.InvalidHostLabelError,
    boto.UnsupportedS3ArnError,
    boto.UnsupportedS3AccesspointConfigurationError,
    boto.UnsupportedOutpostResourceError,
    boto.ValidationError,
    boto.ParamValidationError,
    ValueError,
)
"""Errors about endpoint, region and bucket."""
_THROTTLED = {"SlowDown", "TooManyRequests", "429", "503", "Throttling", "ThrottlingException"}
_RETRYABLE = _THROTTLED | {
    "RequestLimitExceeded", "ServiceUnavailable", "InternalError", "RequestTimeout",
    "OperationAborted", "ConditionalRequestConflict", "500", "502", "504",
}  # fmt: skip


class _Refusal(NamedTuple):
    """A known refusal: `StoreError.reason`, the error codes of the store's answer (or its status,
    if it has no code), and the message."""

    reason: str
    codes: str
    message: str
    reach: Reach = Reach.ITEM
    retryable: bool = False


_NOT_IMPLEMENTED = _Refusal(
    "not_implemented", "NotImplemented", "the store does not know {operation} as it was asked"
)
_REFUSALS = (
    _NOT_IMPLEMENTED,
    _Refusal(
        "not_found",
        "NoSuchKey NoSuchVersion NotFound 404",
        "the store answered {operation} with {code}",
    ),
    _Refusal("no_upload", "NoSuchUpload", "the multipart upload is gone"),
    _Refusal(
        "not_configured", "ObjectLockConfigurationNotFoundError", "the bucket has no Object Lock"
    ),
    _Refusal(
        "cold",
        "InvalidObjectState",
        "the store must restore this object before it can be read: choose an "
        "ARCHIVER_STORAGE_CLASS that can be read at once",
    ),
    _Refusal(
        "denied",
        "AccessDenied Forbidden 403 AllAccessDisabled",
        "the store refused {operation} on bucket {bucket} ({code}): give the credentials "
        "{permission}",
    ),
    _Refusal(
        "damaged",
        "BadDigest IncompleteBody XAmzContentSHA256Mismatch",
        "the store says that what {operation} sent was damaged on the way ({code})",
        retryable=True,
    ),
    _Refusal(
        "no_bucket",
        "NoSuchBucket",
        "bucket {bucket} does not exist: check ARCHIVER_S3_BUCKET",
        Reach.STORE,
    ),
    _Refusal(
        "clock",
        "RequestTimeTooSkewed",
        "the store's clock and this machine's differ too much for it to answer: set the clocks "
        "(NTP)",
        Reach.STORE,
    ),
    _Refusal(
        "credentials",
        "InvalidAccessKeyId SignatureDoesNotMatch",
        "the store refused the credentials ({code}): check AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY",
        Reach.STORE,
    ),
    _Refusal(
        "credentials",
        "ExpiredToken ExpiredTokenException InvalidToken TokenRefreshRequired",
        "the store refused the credentials ({code}): check AWS_SESSION_TOKEN, or the provider of "
        "the credentials",
        Reach.STORE,
    ),
)
_BY_CODE = {code: refusal for refusal in _REFUSALS for code in refusal.codes.split()}

_READING = "s3:GetObject and s3:GetObjectVersion, and s3:ListBucket without conditions"
_WRITING = (
    "s3:PutObject below the archive's prefix (with Object Lock s3:PutObjectRetention, for a held "
    "call s3:PutObjectLegalHold, with KMS kms:GenerateDataKey and kms:Decrypt as well)"
)
_PERMISSIONS = {
    "ListObjectsV2": "s3:ListBucket",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "GetObject": _READING,
    "HeadObject": _READING,
    "GetObjectLockConfiguration": "s3:GetBucketObjectLockConfiguration",
    "PutObject": _WRITING,
    "CreateMultipartUpload": _WRITING,
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
}
"""The permission that an operation needs, if it is not `s3:<operation>`."""


def translate(error: Exception, operation: str, bucket: str) -> StoreError | UsageError:
    """Return the error for an exception that an operation raised: a `UsageError` if AWS's own
    variables and files are wrong."""
    if isinstance(error, ClientError):
        return _refusal(error, operation, bucket)
    if (of_settings := configuration_error(error)) is not None:
        return of_settings
    if isinstance(error, boto.NoCredentialsError):
        return no_credentials()
    if isinstance(error, boto.ProxyConnectionError):
        return StoreError(
            "the store is unreachable (the proxy makes no connection): check HTTPS_PROXY, "
            "HTTP_PROXY and ALL_PROXY, or name the store in NO_PROXY",
            retryable=True,
            reason="unreachable",
        )
    is_untrusted = isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY" in str(error)
    if is_untrusted or getattr(error, "kind", None) == "untrusted":
        return StoreError(
            "the store's TLS certificate is not trusted: set AWS_CA_BUNDLE to its root",
            reason="tls",
        )
    if isinstance(error, _UNREACHABLE):
        # The messages of boto3's errors may contain URLs, which may be signed.
        what = str(error) if isinstance(error, TransportError) else type(error).__name__
        return StoreError(
            f"the store is unreachable ({what}): check ARCHIVER_S3_ENDPOINT_URL and the network",
            retryable=True,
            reason="unreachable",
        )
    if isinstance(error, _OF_SETTINGS):
        check = "check ARCHIVER_S3_ENDPOINT_URL, ARCHIVER_S3_REGION and ARCHIVER_S3_BUCKET"
    else:
        check = "boto3 raises this, perhaps for an AWS_… variable or AWS's configuration file"
    return StoreError(
        f"the store cannot be asked ({type(error).__name__}): {check}", reason="settings"
    )


def of_object(message: str, reason: str, *, retryable: bool = False) -> StoreError:
    """An error that reaches one object only."""
    return StoreError(message, reason=reason, retryable=retryable, reach=Reach.ITEM)


def odd(message: str) -> StoreError:
    """The error for an answer that is not from S3, such as a proxy's page with status 200. It may
    be temporary, so it is retryable."""
    return of_object(message, "odd", retryable=True)


def _refusal(error: ClientError, operation: str, bucket: str) -> StoreError:
    """The error for an answer of the store, by its code and status."""
    code = str(error.response.get("Error", {}).get("Code", "unknown"))[:64]
    answer = error.response.get("ResponseMetadata", {})
    status, headers = answer.get("HTTPStatusCode"), answer.get("HTTPHeaders", {})
    if code in ("PreconditionFailed", "412"):
        return KeyTaken(f"{operation}: the key is taken", reason="taken", status=412)
    known = _BY_CODE.get(code, _NOT_IMPLEMENTED if status == 501 else None)
    if known is not None:
        return StoreError(
            known.message.format(
                operation=operation,
                bucket=bucket,
                code=code,
                permission=_PERMISSIONS.get(operation, f"s3:{operation}"),
            ),
            retryable=known.retryable,
            reason=known.reason,
            status=status,
            reach=known.reach,
        )
    asked = retry_after_seconds(headers, at_most=LONGEST_WAIT_SECONDS)
    throttled = code in _THROTTLED or status == 429
    retryable = throttled or code in _RETRYABLE or (isinstance(status, int) and status >= 500)
    return StoreError(
        f"the store answered {operation} with {code}",
        retryable=retryable,
        retry_after_seconds=asked if retryable else None,
        reason="throttled" if throttled else "status_5xx" if retryable else "refused",
        status=status,
        reach=Reach.ITEM,
    )
