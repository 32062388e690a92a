"""What can go wrong with jobs, by what the caller can do about it.

GatewayError
├── NoSuchJob            404  choose another job
├── NoSuchOutput         404  choose another variant; the message lists those there are
├── NotDone              409  come back when the job has ended
├── NotRetriable         409  nothing: the job is under way, or done
├── IdempotencyMismatch  409  choose another key
├── UnreadableJob        503  come back, or ask a gateway of the other version
└── JobsUnavailable      503  come back: the database does not answer
"""

from gateway.errors import GatewayError


class NoSuchJob(GatewayError):
    """There is none of this id, or it is another's."""

    status, code = 404, "job_not_found"


class NoSuchOutput(GatewayError):
    """The job has no such file."""

    status, code, param = 404, "output_not_found", "variant"


class NotConvertible(GatewayError):
    """The file cannot be had in another format."""

    status, code, param = 409, "not_convertible", "format"


class NotDone(GatewayError):
    """The job has no files yet, or will have none."""

    status, code = 409, "job_not_completed"


class NotRetriable(GatewayError):
    """The job has neither failed nor been cancelled."""

    status, code = 409, "job_not_retriable"


class IdempotencyMismatch(GatewayError):
    """The key stands for another request."""

    status, code, param = 409, "idempotency_key_reused", "Idempotency-Key"


class UnreadableJob(GatewayError):
    """The row is of another version of the gateway."""

    status, code, should_retry, retry_after = 503, "job_unreadable", True, 60


class JobsUnavailable(GatewayError):
    """Nobody can say what has become of a job, or take one on."""

    status, code, should_retry, retry_after = 503, "jobs_unavailable", True, 3
