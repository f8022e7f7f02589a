"""Start, watch and stop the local services: Prefect server, MLflow server, one worker of pool ``gpu``.

    python deploy/services.py up       start what does not run, apply deployments and automations, print addresses
    python deploy/services.py down     stop what runs; data stays
    python deploy/services.py status   say what answers
    python deploy/services.py apply    apply deploy/prefect.yaml and deploy/automations.yaml to a running server

Settings are environment variables; each has a default that suits one machine:

    SRA_STORE                 sra-store        results, and the MLflow database unless one is named; if it
                                               is a URL, the servers keep their state in ./sra-store
    SERVICES_HOST             127.0.0.1        address that servers listen on
    SERVICES_PREFECT_PORT     4200
    SERVICES_MLFLOW_PORT      5000
    SERVICES_HOME             <state>/services process ids, logs, Prefect's database
    SERVICES_PREFECT_DATABASE                  e.g. postgresql+asyncpg://user:password@host/prefect
    SERVICES_MLFLOW_DATABASE                   e.g. postgresql+psycopg2://user:password@host/mlflow
    SERVICES_MLFLOW_AUTH_STRING                user:password (12 letters or more) that MLflow asks for; extra ``auth``
    SERVICES_GPU_JOBS         1                jobs at a time in queue ``train``
    SERVICES_CPU_JOBS         2                jobs at a time in queue ``cpu``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from sra_core import __version__
from sra_core.watch import QUIET

ROOT = Path(__file__).resolve().parent.parent
POOL = "gpu"
MLFLOW_AUTH = """[mlflow]
default_permission = READ
database_uri = sqlite:///{database}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class ServiceError(Exception):
    """A service that does not start or answer; the message names its log."""


@dataclass(frozen=True)
class Settings:
    """Where services listen and keep their data."""

    host: str = "127.0.0.1"
    prefect_port: int = 4200
    mlflow_port: int = 5000
    store: str = field(default_factory=lambda: str(Path("sra-store").absolute()))
    state: Path = field(default_factory=lambda: Path("sra-store").absolute())
    home: Path = field(default_factory=lambda: Path("sra-store/services").absolute())
    prefect_database: str | None = None
    mlflow_database: str | None = None
    mlflow_auth: str | None = field(default=None, repr=False)
    gpu_jobs: int = 1
    cpu_jobs: int = 2

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        store = environment.get("SRA_STORE", "sra-store")
        remote = "://" in store
        state = Path("sra-store" if remote else store).expanduser().absolute()
        return cls(
            host=environment.get("SERVICES_HOST", "127.0.0.1"),
            prefect_port=int(environment.get("SERVICES_PREFECT_PORT", "4200")),
            mlflow_port=int(environment.get("SERVICES_MLFLOW_PORT", "5000")),
            store=store if remote else str(state),
            state=state,
            home=Path(environment.get("SERVICES_HOME", str(state / "services"))).expanduser().absolute(),
            prefect_database=environment.get("SERVICES_PREFECT_DATABASE"),
            mlflow_database=environment.get("SERVICES_MLFLOW_DATABASE"),
            mlflow_auth=environment.get("SERVICES_MLFLOW_AUTH_STRING"),
            gpu_jobs=int(environment.get("SERVICES_GPU_JOBS", "1")),
            cpu_jobs=int(environment.get("SERVICES_CPU_JOBS", "2")),
        )

    @property
    def reachable_host(self) -> str:
        return "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host

    @property
    def prefect_url(self) -> str:
        return f"http://{self.reachable_host}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{self.reachable_host}:{self.mlflow_port}"

    def environment(self) -> dict[str, str]:
        """What every service and every flow run gets: no usage reports, one home, the addresses of the others."""
        database = self.prefect_database or f"sqlite+aiosqlite:///{self.home / 'prefect.db'}"
        return {
            **os.environ,
            **{name: os.environ.get(name, value) for name, value in QUIET.items()},
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "2"),
            "PREFECT_LOGGING_EXTRA_LOGGERS": "sra_core",
            "PREFECT_CLI_PROMPT": "false",
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "SRA_STORE": self.store,
            "SRA_ROOT": str(ROOT),
            "SRA_VERSION": __version__,
            **self._mlflow_password(),
        }

    def _mlflow_password(self) -> dict[str, str]:
        """What MLflow's server and its clients read where it asks for a password."""
        if not self.mlflow_auth:
            return {}
        user, _, password = self.mlflow_auth.partition(":")
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(self.home / "mlflow-auth.ini"),
            "MLFLOW_AUTH_ADMIN_USERNAME": user,
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": hashlib.sha256(f"forms {self.mlflow_auth}".encode()).hexdigest(),
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password,
        }


@dataclass(frozen=True)
class Service:
    """A process with its command, and how to tell that it answers."""

    name: str
    command: list[str]
    answers: Callable[[], bool]
    address: str
    patience: float = 300.0


def services(settings: Settings) -> list[Service]:
    """The services in the order in which they start."""
    python = sys.executable
    database = settings.mlflow_database or f"sqlite:///{settings.state / 'mlflow.db'}"
    prefect = [python, "-m", "prefect", "server", "start", "--host", settings.host]
    mlflow = [python, "-m", "mlflow", "server", "--backend-store-uri", database, "--host", settings.host]
    worker = [python, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "local"]
    return [
        Service(
            "prefect",
            [*prefect, "--port", str(settings.prefect_port)],
            lambda: _answers(f"{settings.prefect_url}/api/health"),
            settings.prefect_url,
        ),
        Service(
            "mlflow",
            [
                *(*mlflow, "--port", str(settings.mlflow_port), "--workers", "1"),
                *("--artifacts-destination", str(settings.state / "mlflow-artifacts")),
                *(("--app-name", "basic-auth") if settings.mlflow_auth else ()),
            ],
            lambda: _answers(f"{settings.mlflow_url}/health"),
            settings.mlflow_url,
        ),
        Service(
            "worker",
            [*worker, "--install-policy", "never"],
            lambda: _worker_online(settings),
            f"{settings.prefect_url}/work-pools/work-pool/{POOL}",
        ),
    ]


def up(settings: Settings) -> None:
    """Start what does not run, wait until each answers, apply the deployments.

    Raises:
        ServiceError: A port is taken, or a service ends or does not answer in time.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    if settings.mlflow_auth:
        text = MLFLOW_AUTH.format(database=settings.home / "mlflow-users.db")
        (settings.home / "mlflow-auth.ini").write_text(text)
    prefect, mlflow, worker = services(settings)
    for service, variable in ((prefect, "SERVICES_PREFECT_PORT"), (mlflow, "SERVICES_MLFLOW_PORT")):
        if running(service, settings) is None and _is_taken(service.address):
            raise ServiceError(f"{service.name}: {service.address}: address already in use; set {variable} to another")
    for service in (prefect, mlflow):
        start(service, settings)
    for service in (prefect, mlflow):
        wait(service, settings)
    apply(settings)
    start(worker, settings)
    wait(worker, settings)


def start(service: Service, settings: Settings) -> None:
    """Start a service in a session of its own unless it runs already."""
    if running(service, settings) is not None:
        return
    with (settings.home / f"{service.name}.log").open("ab") as log:
        process = subprocess.Popen(
            service.command,
            cwd=ROOT,
            env=settings.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    record = {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
    _pid_file(service, settings).write_text(json.dumps(record))


def wait(service: Service, settings: Settings) -> None:
    """Wait until a started service answers.

    Raises:
        ServiceError: It ended, or does not answer in time.
    """
    limit = time.monotonic() + service.patience
    while not service.answers():
        log = settings.home / f"{service.name}.log"
        if running(service, settings) is None:
            raise ServiceError(f"{service.name} ended while starting; the last lines of {log}:\n{_tail(log)}")
        if time.monotonic() > limit:
            raise ServiceError(f"{service.name} does not answer after {service.patience:.0f} s; see {log}")
        time.sleep(0.3)


def down(settings: Settings) -> None:
    """Stop all services, last started first. Flow runs that the worker started end with it."""
    for service in reversed(services(settings)):
        process = running(service, settings)
        if process is not None:
            stop(process)
        _pid_file(service, settings).unlink(missing_ok=True)


def stop(process: psutil.Process, patience: float = 30.0) -> None:
    """Ask a process to end, then end what is left of it and of its children."""
    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=patience)
    for member in alive:
        member.kill()
    psutil.wait_procs(alive, timeout=5)


def running(service: Service, settings: Settings) -> psutil.Process | None:
    """The service's process if it is alive; a number that another process has now does not count."""
    try:
        record = json.loads(_pid_file(service, settings).read_text())
        process = psutil.Process(record["pid"])
    except (FileNotFoundError, json.JSONDecodeError, psutil.NoSuchProcess):
        return None
    same = process.create_time() == record["created"] and process.status() != psutil.STATUS_ZOMBIE
    return process if same else None


def apply(settings: Settings) -> None:
    """Create pool and queues, apply the deployments and the automations.

    Raises:
        ServiceError: The Prefect command line refused something.
    """
    jobs = settings.gpu_jobs + settings.cpu_jobs
    if POOL not in {pool["name"] for pool in _post(settings, "work_pools/filter")}:
        _prefect(settings, "work-pool", "create", POOL, "--type", "process")
    _request(settings, "PATCH", f"work_pools/{POOL}", {"concurrency_limit": jobs})
    queues = {queue["name"] for queue in _post(settings, f"work_pools/{POOL}/queues/filter")}
    for name, limit in (("train", settings.gpu_jobs), ("cpu", settings.cpu_jobs)):
        change = {"concurrency_limit": limit}
        if name in queues:
            _request(settings, "PATCH", f"work_pools/{POOL}/queues/{name}", change)
        else:
            _request(settings, "POST", f"work_pools/{POOL}/queues", {"name": name, **change})
    _prefect(settings, "deploy", "--all", "--prefect-file", str(ROOT / "deploy" / "prefect.yaml"))
    _refuse_unknown_parameters(settings)
    _apply_automations(settings)


def _refuse_unknown_parameters(settings: Settings) -> None:
    """Close the schemas that Prefect leaves open: an unknown parameter would crash the run before its flow starts."""
    for item in _post(settings, "deployments/filter"):
        if "sra" in item["tags"]:
            closed = {**item["parameter_openapi_schema"], "additionalProperties": False}
            _request(settings, "PATCH", f"deployments/{item['id']}", {"parameter_openapi_schema": closed})


def _apply_automations(settings: Settings) -> None:
    import yaml

    wanted = yaml.safe_load((ROOT / "deploy" / "automations.yaml").read_text(encoding="utf-8"))
    existing = {item["name"]: item for item in _post(settings, "automations/filter")}
    deployments = {item["name"]: item["id"] for item in _post(settings, "deployments/filter")}
    for automation in wanted:
        for action in automation["actions"]:
            if "deployment" in action:
                action["deployment_id"] = deployments[action.pop("deployment").partition("/")[2]]
        old = existing.get(automation["name"])
        if old is None:
            _request(settings, "POST", "automations/", automation)
        else:
            _request(settings, "PUT", f"automations/{old['id']}", {**automation, "enabled": old["enabled"]})


def _prefect(settings: Settings, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=ROOT,
        env=settings.environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ServiceError(f"prefect {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


def _request(settings: Settings, method: str, path: str, content: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        import base64

        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    request = urllib.request.Request(
        f"{settings.prefect_url}/api/{path}", json.dumps(content).encode(), headers, method=method
    )
    for patience in (1, 2, 4, 8, 0):  # a server that has just started may be too busy with its database
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                text = response.read()
            break
        except urllib.error.HTTPError as error:
            if error.code != 503 or not patience:
                raise ServiceError(f"{method} {path}: {error.code} {error.read().decode()[:500]}") from error
            time.sleep(patience)
    return json.loads(text) if text else None


def _post(settings: Settings, path: str) -> Any:
    return _request(settings, "POST", path, {})


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 401  # it runs, behind a password
    except OSError:
        return False


def _is_taken(address: str) -> bool:
    """Whether something listens there already."""
    place = urllib.parse.urlsplit(address)
    with socket.socket() as probe:
        return probe.connect_ex((place.hostname or "", place.port or 0)) == 0


def _worker_online(settings: Settings) -> bool:
    return any(worker["status"] == "ONLINE" for worker in _post(settings, f"work_pools/{POOL}/workers/filter"))


def _pid_file(service: Service, settings: Settings) -> Path:
    return settings.home / f"{service.name}.pid"


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def report(settings: Settings) -> bool:
    """Print what answers; returns whether everything does."""
    fine = True
    for service in services(settings):
        process = running(service, settings)
        alive = process is not None and service.answers()
        fine = fine and alive
        state = f"process {process.pid}" if alive and process else "does not run" if process is None else "no answer"
        sys.stdout.write(f"{service.name:<8} {service.address:<48} {state}\n")
    return fine


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``python deploy/services.py``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["up", "down", "status", "apply"])
    action = parser.parse_args(arguments).action
    settings = Settings.from_environment(os.environ)
    try:
        if action == "status":
            return 0 if report(settings) else 1
        {"up": up, "down": down, "apply": apply}[action](settings)
    except ServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if action == "up":
        report(settings)
        sys.stdout.write(f"logs in {settings.home}; trigger a run at {settings.prefect_url}/deployments\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
