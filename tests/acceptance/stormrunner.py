"""A runner of few words for the fake VMM: goes online, takes one job, ends it as the job's step says, and is gone.

Run as `python -I -S stormrunner.py` with a JIT config in its environment, hundreds of times: so it imports little. It
speaks sim/runner_api.py's protocol, as the base image's own script does; a job's step is `exit N`, and is not run.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import sys
import time

PATIENCE_S = 30.0  # with a server that is having a bad day


def read_config() -> tuple[str, str]:
    """Where the server is, and the runner's own token."""
    files = json.loads(base64.b64decode(os.environ["ACTIONS_RUNNER_INPUT_JITCONFIG"]))
    settings, secret = (json.loads(base64.b64decode(files[name])) for name in (".runner", ".credentials"))
    return settings["serverUrl"], secret["token"]


def main() -> int:
    """0 also where no job came; 1 where the server does not know this runner."""
    url, token = read_config()
    host = url.removeprefix("http://")

    def ask(method: str, path: str, body: str | None = None) -> tuple[int, list[str]]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            connection = http.client.HTTPConnection(host, timeout=60)
            try:
                connection.request(method, f"/_runner{path}", body, {"Authorization": f"Bearer {token}"})
                answer = connection.getresponse()
                told = answer.read().decode().splitlines()
                if answer.status < 500:
                    return answer.status, told
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            if time.monotonic() > deadline:
                raise SystemExit(1)
            time.sleep(0.2)

    if ask("POST", "/session", "-")[0] != 200:
        return 1
    while True:
        status, told = ask("GET", "/job?wait=20")
        if status != 200:
            return 1
        if told[0] == "gone":
            return 0
        if told[0] == "none":
            continue
        job = told[0].split()[1]
        if ask("POST", f"/jobs/{job}/accept", "-")[0] == 200:
            break
    _, script = ask("GET", f"/jobs/{job}/steps/1/script")
    ask("POST", f"/jobs/{job}/steps/1/start", "-")
    outcome = "success" if script and script[0] == "exit 0" else "failure"
    ask("POST", f"/jobs/{job}/steps/1/finish", outcome)
    return 0 if ask("POST", f"/jobs/{job}/complete", outcome)[0] == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
