"""What boto3 raises, in our words: one line, what to do, and whether to try again."""

from __future__ import annotations

import botocore.exceptions as boto
from botocore.exceptions import ClientError

from archiver.errors import KeyTaken, StoreError

_RETRYABLE = {
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "ServiceUnavailable",
    "InternalError", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict",
    "500", "502", "503", "504",
}  # fmt: skip
_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_DAMAGED = {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
_DENIED = {"AccessDenied", "Forbidden", "403", "AllAccessDisabled"}
_UNREACHABLE = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
    OSError,
)


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
    if isinstance(error, boto.SSLError):
        return StoreError(
            "the store's TLS certificate is not trusted: set AWS_CA_BUNDLE to its root",
            reason="tls",
        )
    if isinstance(error, _UNREACHABLE):
        return StoreError(
            f"the store is unreachable ({type(error).__name__}): check ARCHIVER_S3_ENDPOINT_URL "
            "and the network",
            retryable=True,
            reason="unreachable",
        )
    return StoreError(
        f"the store cannot be asked ({type(error).__name__}): check ARCHIVER_S3_ENDPOINT_URL, "
        "ARCHIVER_S3_REGION and ARCHIVER_S3_BUCKET",
        reason="settings",
    )


def _answered(error: ClientError, operation: str, bucket: str) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))[:64]
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in ("PreconditionFailed", "412"):
        return KeyTaken(f"{operation}: the key is taken", reason="taken", status=412)
    if code == "NoSuchBucket":
        return StoreError(f"bucket {bucket} does not exist: check ARCHIVER_S3_BUCKET", status=404)
    if code == "NoSuchUpload":
        return StoreError("the multipart upload is gone", reason="no_upload", status=404)
    if code in _CREDENTIALS:
        return StoreError(
            f"the store refused the credentials ({code}): check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY",
            status=status,
            reason="credentials",
        )
    if code == "RequestTimeTooSkewed":
        return StoreError(
            "the store's clock and this machine's differ too much for it to answer: set the clocks "
            "(NTP)",
            status=status,
            reason="clock",
        )
    if code in _DAMAGED:
        return StoreError(
            f"the store says that what {operation} sent was damaged on the way ({code})",
            retryable=True,
            status=status,
            reason="damaged",
        )
    if code in _DENIED:
        return StoreError(
            f"the store refused {operation} on bucket {bucket} ({code}): give the credentials "
            f"{_permission(operation)}",
            status=403,
            reason="denied",
        )
    if code == "ObjectLockConfigurationNotFoundError":
        return StoreError("the bucket has no Object Lock", reason="not_configured", status=404)
    if code == "NotImplemented" or status == 501:
        return StoreError(
            f"the store does not know {operation} as it was asked",
            reason="not_implemented",
            status=501,
        )
    retryable = code in _RETRYABLE or (isinstance(status, int) and status >= 500)
    throttled = code in ("SlowDown", "503", "Throttling", "ThrottlingException")
    return StoreError(
        f"the store answered {operation} with {code}",
        retryable=retryable,
        reason="throttled" if throttled else "status_5xx" if retryable else "refused",
        status=status,
    )


_PERMISSIONS = {
    "ListObjectsV2": "s3:ListBucket",
    "list_objects_v2": "s3:ListBucket",
    "list_object_versions": "s3:ListBucketVersions",
    "PutObject": "s3:PutObject (for Object Lock s3:PutObjectRetention as well)",
    "HeadObject": "s3:GetObject and s3:GetObjectVersion",
    "GetObjectLockConfiguration": "s3:GetBucketObjectLockConfiguration",
    "CreateMultipartUpload": "s3:PutObject (for Object Lock s3:PutObjectRetention as well)",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
}


def _permission(operation: str) -> str:
    return _PERMISSIONS.get(operation, f"s3:{operation}")
