"""What boto3 raises, in our words: one line, what to do, whether to try again, and how far it
reaches.

A refusal of one request is about its object: another key, another prefix may be taken. What says
that no request can succeed (credentials, clock, bucket, network) is about the store.
"""

from __future__ import annotations

import botocore.exceptions as boto
from botocore.exceptions import ClientError
from urllib3.exceptions import HTTPError

from archiver.errors import KeyTaken, Reach, StoreError
from archiver.heads import NoAnswer

_UNREACHABLE = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
    HTTPError,
    NoAnswer,
    OSError,
)
_RETRYABLE = {
    "SlowDown", "TooManyRequests", "429", "Throttling", "ThrottlingException",
    "RequestLimitExceeded", "ServiceUnavailable", "InternalError", "RequestTimeout",
    "OperationAborted", "ConditionalRequestConflict", "500", "502", "503", "504",
}  # fmt: skip
_THROTTLED = {"SlowDown", "TooManyRequests", "429", "503", "Throttling", "ThrottlingException"}

_TOLD = {
    "no_upload": "the multipart upload is gone",
    "not_configured": "the bucket has no Object Lock",
    "no_bucket": "bucket {bucket} does not exist: check ARCHIVER_S3_BUCKET",
    "clock": (
        "the store's clock and this machine's differ too much for it to answer: set the clocks "
        "(NTP)"
    ),
    "cold": (
        "the store must restore this object before it can be read: choose an "
        "ARCHIVER_STORAGE_CLASS that can be read at once"
    ),
    "credentials": (
        "the store refused the credentials ({code}): check AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY"
    ),
    "damaged": "the store says that what {operation} sent was damaged on the way ({code})",
    "denied": (
        "the store refused {operation} on bucket {bucket} ({code}): give the credentials "
        "{permission}"
    ),
    "not_implemented": "the store does not know {operation} as it was asked",
}
"""What a person is told, by the error's `reason`."""
_REASONS = {
    "NoSuchUpload": "no_upload",
    "ObjectLockConfigurationNotFoundError": "not_configured",
    "NoSuchBucket": "no_bucket",
    "RequestTimeTooSkewed": "clock",
    "InvalidObjectState": "cold",
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"),
        "credentials",
    ),
    **dict.fromkeys(("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"), "damaged"),
    **dict.fromkeys(("AccessDenied", "Forbidden", "403", "AllAccessDisabled"), "denied"),
    "NotImplemented": "not_implemented",
}
_ABOUT_THE_STORE = {"no_bucket", "clock", "credentials"}
_READING = "s3:GetObject and s3:GetObjectVersion, and s3:ListBucket without conditions"
_WRITING = (
    "s3:PutObject below the archive's prefix (with Object Lock s3:PutObjectRetention, for a held "
    "call s3:PutObjectLegalHold, with KMS kms:GenerateDataKey and kms:Decrypt as well)"
)
_PERMISSIONS = {
    "ListObjectsV2": "s3:ListBucket",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "GetObject": _READING,
    "HeadObject": _READING,
    "GetObjectLockConfiguration": "s3:GetBucketObjectLockConfiguration",
    "PutObject": _WRITING,
    "CreateMultipartUpload": _WRITING,
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
}


def translate(error: Exception, operation: str, bucket: str) -> StoreError:
    """The `StoreError` for what boto3 raised. Nothing of the answer's body is in it."""
    if isinstance(error, ClientError):
        return _answered(error, operation, bucket)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return StoreError(
            "no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod "
            "a role",
            reason="credentials",
        )
    if isinstance(error, boto.SSLError) or getattr(error, "kind", None) == "untrusted":
        return StoreError(
            "the store's TLS certificate is not trusted: set AWS_CA_BUNDLE to its root",
            reason="tls",
        )
    if isinstance(error, _UNREACHABLE):
        return StoreError(
            f"the store is unreachable ({_word(error)}): check ARCHIVER_S3_ENDPOINT_URL "
            "and the network",
            retryable=True,
            reason="unreachable",
        )
    return StoreError(
        f"the store cannot be asked ({type(error).__name__}): check ARCHIVER_S3_ENDPOINT_URL, "
        "ARCHIVER_S3_REGION and ARCHIVER_S3_BUCKET",
        reason="settings",
    )


def _word(error: Exception) -> str:
    """The words of boto3's errors may hold URLs."""
    return str(error) if isinstance(error, NoAnswer) else type(error).__name__


def _answered(error: ClientError, operation: str, bucket: str) -> StoreError:
    """The error for what the store itself said, by its code."""
    code = str(error.response.get("Error", {}).get("Code", "unknown"))[:64]
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in ("PreconditionFailed", "412"):
        return KeyTaken(f"{operation}: the key is taken", reason="taken", status=412)
    reason = _REASONS.get(code, "not_implemented" if status == 501 else "")
    if reason:
        permission = _PERMISSIONS.get(operation, f"s3:{operation}")
        message = _TOLD[reason].format(
            operation=operation, bucket=bucket, code=code, permission=permission
        )
        return StoreError(
            message,
            retryable=reason == "damaged",
            reason=reason,
            status=status,
            reach=Reach.STORE if reason in _ABOUT_THE_STORE else Reach.ITEM,
        )
    retryable = code in _RETRYABLE or (isinstance(status, int) and status >= 500)
    reason = "throttled" if code in _THROTTLED else "status_5xx" if retryable else "refused"
    message = f"the store answered {operation} with {code}"
    return StoreError(message, retryable=retryable, reason=reason, status=status, reach=Reach.ITEM)
