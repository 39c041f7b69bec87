"""Jobs on a Ray cluster, by its REST interface.

Not by Ray's own client: that one waits for ever, and would load Ray into the service.
"""

from __future__ import annotations

import shlex
from typing import Any

import httpx2

from focus_lab.lab.queue.capacity import Capacity, Resources
from focus_lab.lab.queue.jobs import JobStatus, JobsUnreachableError

_TIMEOUT_S = 10.0

_STATUS = {
    "PENDING": JobStatus.PENDING,
    "RUNNING": JobStatus.RUNNING,
    "STOPPED": JobStatus.ENDED,
    "SUCCEEDED": JobStatus.ENDED,
    "FAILED": JobStatus.ENDED,
}


class RayJobs:
    """Drivers as Ray Jobs.

    Args:
        address: of the cluster's dashboard, http://HOST:PORT.
        token: of the cluster; None where it asks for none.
        python: the interpreter of the cluster's head node.
    """

    def __init__(self, address: str, token: str | None = None, python: str = "python") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.address, self._python = address.rstrip("/"), python
        self._client = httpx2.Client(base_url=self.address, headers=headers, timeout=_TIMEOUT_S)

    def submit(self, job_id: str, experiment_id: str, attempt: int, name: str) -> None:
        """Start a driver; Ray refuses a second job with the same id, which is as wanted."""
        command = [self._python, "-m", "focus_lab.lab.queue.job", experiment_id, str(attempt)]
        content = {
            "submission_id": job_id,
            "entrypoint": shlex.join(command),
            "metadata": {"focus_lab.experiment": name, "focus_lab.attempt": str(attempt)},
        }
        answer = self._ask("POST", "/api/jobs/", json=content)
        if answer.status_code != 200 and self.status(job_id) is JobStatus.UNKNOWN:
            raise self._trouble(answer)

    def status(self, job_id: str) -> JobStatus:
        """How Ray says that the job stands."""
        answer = self._ask("GET", f"/api/jobs/{job_id}")
        if answer.status_code == 404:
            return JobStatus.UNKNOWN
        if answer.status_code != 200:
            raise self._trouble(answer)
        return _STATUS.get(str(answer.json().get("status")), JobStatus.UNKNOWN)

    def stop(self, job_id: str) -> None:
        """SIGTERM, and after RAY_JOB_STOP_WAIT_TIME_S of the cluster SIGKILL."""
        answer = self._ask("POST", f"/api/jobs/{job_id}/stop")
        if answer.status_code not in (200, 404):
            raise self._trouble(answer)

    def logs(self, job_id: str) -> str:
        """What the driver has printed so far; nothing when Ray does not know it."""
        answer = self._ask("GET", f"/api/jobs/{job_id}/logs")
        if answer.status_code == 404:
            return ""
        if answer.status_code != 200:
            raise self._trouble(answer)
        return str(answer.json().get("logs") or "")

    def capacity(self) -> Capacity:
        """Cores and GPUs of every machine that is alive."""
        answer = self._ask("GET", "/api/v0/nodes", params={"limit": "10000", "detail": "true"})
        if answer.status_code != 200:
            raise self._trouble(answer)
        found = answer.json()["data"]["result"]["result"]
        return Capacity(
            tuple(
                Resources(
                    float(node["resources_total"].get("CPU", 0.0)),
                    float(node["resources_total"].get("GPU", 0.0)),
                )
                for node in found
                if node.get("state") == "ALIVE"
            )
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, method: str, path: str, **content: Any) -> httpx2.Response:
        try:
            answer = self._client.request(method, path, **content)
        except httpx2.HTTPError as error:
            raise JobsUnreachableError(
                f"Ray cluster at {self.address}: does not answer, got "
                f"{type(error).__name__}; start it, or check the address"
            ) from error
        if answer.status_code in (401, 403):
            raise JobsUnreachableError(
                f"Ray cluster at {self.address}: refuses the token, got {answer.status_code}; "
                "set RAY_AUTH_TOKEN to the cluster's"
            )
        return answer

    def _trouble(self, answer: httpx2.Response) -> JobsUnreachableError:
        lines = answer.text.strip().splitlines() or [""]
        return JobsUnreachableError(
            f"Ray cluster at {self.address}: cannot do it now, got {answer.status_code} "
            f"{lines[-1][:200]}; it is tried again"
        )
