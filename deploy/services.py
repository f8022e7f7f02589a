"""Start, watch and stop the local services: Prefect server, MLflow server, one worker of pool ``gpu``.

    python deploy/services.py up       start what does not run, apply deployments and automations, print addresses
    python deploy/services.py down     stop what runs; data stays, interrupted runs go on at the next ``up``
    python deploy/services.py status   say what answers
    python deploy/services.py apply    apply deploy/prefect.yaml and deploy/automations.yaml to a running server
    python deploy/services.py recover  schedule runs again whose process is gone; ``up`` and ``down`` do that too

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
from sra_core.config.secrets import refuse_secrets
from sra_core.errors import ConfigError
from sra_core.watch import QUIET

ROOT = Path(__file__).resolve().parent.parent
POOL = "gpu"
WORKER = "local"
MLFLOW_AUTH = """[mlflow]
default_permission = READ
database_uri = sqlite:///{database}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""
SET_PASSWORD = """
import os
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

users = SqlAlchemyStore()
users.init_db(os.environ["SERVICES_MLFLOW_USERS"])
name = os.environ["MLFLOW_AUTH_ADMIN_USERNAME"]
if users.has_user(name):
    users.update_user(name, os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"])
"""
"""MLflow takes the administrator's password from the environment only when it makes that user."""
PRIVATE = ("SERVICES_PREFECT_DATABASE", "SERVICES_MLFLOW_DATABASE", "SERVICES_MLFLOW_AUTH_STRING")
"""Variables of the servers that hold passwords; flow runs have no use for them."""


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
        try:
            refuse_secrets({"SRA_STORE": store})
        except ConfigError as error:
            raise ServiceError(str(error)) from error
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
        """What the worker and every flow run get: no usage reports, one home, the addresses of the servers."""
        return {
            **{name: value for name, value in os.environ.items() if name not in PRIVATE},
            **{name: os.environ.get(name, value) for name, value in QUIET.items()},
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "2"),
            "PREFECT_LOGGING_EXTRA_LOGGERS": "sra_core",
            "PREFECT_CLI_PROMPT": "false",
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            "SRA_STORE": self.store,
            "SRA_ROOT": str(ROOT),
            "SRA_VERSION": __version__,
            **self._mlflow_password(),
        }

    def server_environment(self) -> dict[str, str]:
        """What the servers get besides: their databases, here and not on command lines, which every user can read."""
        mlflow = self.mlflow_database or f"sqlite:///{self.state / 'mlflow.db'}"
        return {
            **self.environment(),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.prefect_database
            or f"sqlite+aiosqlite:///{self.home / 'prefect.db'}",
            # In memory they end with the server, and then every run that holds a slot of a limit ends too ("410 Gone").
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "MLFLOW_BACKEND_STORE_URI": mlflow,
            # MLflow 3 runs jobs in processes of their own by default, which SIGTERM to the server would leave behind.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
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
            # Behind a password MLflow does not start without it; derived, it is the same after a restart.
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
    environment: Callable[[], dict[str, str]]
    patience: float = 300.0


def services(settings: Settings) -> list[Service]:
    """The services in the order in which they start."""
    python = sys.executable
    prefect = [python, "-m", "flows.server", "--host", settings.host]
    mlflow = [python, "-m", "mlflow", "server", "--host", settings.host]
    worker = [python, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER]
    return [
        Service(
            "prefect",
            [*prefect, "--port", str(settings.prefect_port)],
            lambda: _answers(f"{settings.prefect_url}/api/health"),
            settings.prefect_url,
            settings.server_environment,
        ),
        Service(
            "mlflow",
            [
                *(*mlflow, "--port", str(settings.mlflow_port), "--workers", "1"),
                *_artifact_place(settings),
                *(("--app-name", "basic-auth") if settings.mlflow_auth else ()),
            ],
            lambda: _answers(f"{settings.mlflow_url}/health"),
            settings.mlflow_url,
            settings.server_environment,
        ),
        Service(
            "worker",
            [*worker, "--install-policy", "never"],  # else it may install packages
            lambda: _worker_online(settings),
            f"{settings.prefect_url}/work-pools/work-pool/{POOL}",
            settings.environment,
        ),
    ]


def _artifact_place(settings: Settings) -> list[str]:
    """Where MLflow keeps artifacts: in a store that is a folder, where `sra` finds them without the server too."""
    folder = settings.state / "mlflow-artifacts"
    inside = settings.store == str(settings.state)  # else workers elsewhere have no such folder: the server writes
    root = ["--default-artifact-root", folder.as_uri()] if inside else []
    return [*root, "--artifacts-destination", str(folder)]


def up(settings: Settings) -> None:
    """Start what does not run, wait until each answers, apply the deployments.

    Raises:
        ServiceError: A port is taken, or a service ends or does not answer in time.
    """
    prefect, mlflow, worker = services(settings)
    _make_private(settings)
    for service, variable in ((prefect, "SERVICES_PREFECT_PORT"), (mlflow, "SERVICES_MLFLOW_PORT")):
        if running(service, settings) is None and _is_taken(service.address):
            raise ServiceError(f"{service.name}: {service.address}: address already in use; set {variable} to another")
    _say(f"starting Prefect and MLflow; logs in {settings.home}")
    if settings.mlflow_auth and running(mlflow, settings) is None:
        _write_passwords(settings)
    for service in (prefect, mlflow):
        start(service, settings)
    for service in (prefect, mlflow):
        wait(service, settings)
    # Before the worker starts: no run that is pending now can be one that it is about to start.
    recover(settings)
    _say("applying deployments and automations")
    apply(settings)
    _say("starting the worker")
    start(worker, settings)
    wait(worker, settings)


def _make_private(settings: Settings) -> None:
    """Close what the services keep to other users of this machine: databases and logs tell what runs hold."""
    folder = settings.state / "mlflow-artifacts"
    for place in (settings.home, folder):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.chmod(0o700)  # mkdir changes no folder that is there
    for place in (*settings.home.iterdir(), *settings.state.glob("mlflow.db*")):
        if place.is_file():
            place.chmod(0o600)


def _write_passwords(settings: Settings) -> None:
    users = settings.home / "mlflow-users.db"
    (settings.home / "mlflow-auth.ini").write_text(MLFLOW_AUTH.format(database=users))
    if users.exists():
        _python(settings, "-c", SET_PASSWORD, SERVICES_MLFLOW_USERS=f"sqlite:///{users}")


def start(service: Service, settings: Settings) -> None:
    """Start a service in a session of its own unless it runs already."""
    if running(service, settings) is not None:
        return
    place = settings.home / f"{service.name}.log"
    place.touch(0o600)
    with place.open("ab") as log:
        process = subprocess.Popen(
            service.command,
            cwd=ROOT,
            env=service.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal of `up` does not reach it
            umask=-1 if service.name == "worker" else 0o077,  # results are for everybody who shares the store
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
    """Stop all services, last started first. Flow runs that the worker started end with it, and wait to go on."""
    prefect, mlflow, worker = services(settings)
    for service in (worker, mlflow, prefect):
        process = running(service, settings)
        if process is not None:
            _say(f"stopping {service.name}")
            stop(process)
        _pid_file(service, settings).unlink(missing_ok=True)
        # Here, while the servers still answer: they are stopped next.
        if service is worker and all(running(each, settings) and each.answers() for each in (prefect, mlflow)):
            try:
                recover(settings)
            except ServiceError as error:  # the next `up` does it
                sys.stderr.write(f"{error}\n")


def recover(settings: Settings) -> None:
    """Schedule runs again whose process is gone.

    Raises:
        ServiceError: A server refused something.
    """
    _, _, worker = services(settings)
    stopped = [] if running(worker, settings) else [WORKER]
    said = _python(settings, "-m", "flows.recovery", *stopped)
    for line in said.splitlines():
        _say(line)


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
        same = process.create_time() == record["created"] and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, json.JSONDecodeError, psutil.NoSuchProcess):  # it may end between two questions
        return None
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
    before = _deployments(settings)
    _prefect(settings, "deploy", "--all", "--prefect-file", str(ROOT / "deploy" / "prefect.yaml"))
    _keep_schedules(settings, before)
    _refuse_unknown_parameters(settings)
    _apply_automations(settings)


def _deployments(settings: Settings) -> list[dict[str, Any]]:
    return [item for item in _post(settings, "deployments/filter") if "sra" in item["tags"]]


def _keep_schedules(settings: Settings, before: list[dict[str, Any]]) -> None:
    """Give deployments back what a person set in the UI: `prefect deploy` replaces schedules and ends a pause."""
    kept = ("slug", "active", "schedule", "parameters", "max_scheduled_runs")
    after = {item["id"]: item for item in _deployments(settings)}
    for old in before:
        path = f"deployments/{old['id']}"
        wanted = [{name: schedule[name] for name in kept} for schedule in old["schedules"]]
        found = after[old["id"]]["schedules"]
        if [{name: schedule[name] for name in kept} for schedule in found] != wanted:
            for schedule in found:
                _request(settings, "DELETE", f"{path}/schedules/{schedule['id']}", None)
            _request(settings, "POST", f"{path}/schedules", wanted)
        if old["paused"]:
            _request(settings, "POST", f"{path}/pause_deployment", None)


def _refuse_unknown_parameters(settings: Settings) -> None:
    """Close the schemas that Prefect leaves open: an unknown parameter would crash the run before its flow starts."""
    for item in _deployments(settings):
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
            continue
        wanted = {**automation, "enabled": old["enabled"]}
        if not _is_same(wanted, old):  # an update makes the server forget the runs that it is waiting for
            _request(settings, "PUT", f"automations/{old['id']}", wanted)


def _is_same(wanted: Any, found: Any) -> bool:
    """Whether what the server has is what is wanted; it fills in ids and empty values, and keeps no order of words."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        added = {name for name in found.keys() - wanted.keys() if found[name]} - {"id", "created", "updated"}
        return not added and all(_is_same(wanted[name], found.get(name)) for name in wanted)
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        if all(isinstance(item, str) for item in wanted):
            return sorted(wanted) == sorted(found)
        return all(_is_same(*pair) for pair in zip(wanted, found, strict=True))
    return bool(wanted == found)


def _prefect(settings: Settings, *arguments: str) -> None:
    _python(settings, "-m", "prefect", "--no-prompt", *arguments)


def _python(settings: Settings, *arguments: str, **variables: str) -> str:
    """Run a module beside the services; returns what it printed."""
    environment = {**settings.environment(), **variables}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ServiceError(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


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
    if not _answers(f"{settings.prefect_url}/api/health"):
        return False
    return any(worker["status"] == "ONLINE" for worker in _post(settings, f"work_pools/{POOL}/workers/filter"))


def _pid_file(service: Service, settings: Settings) -> Path:
    return settings.home / f"{service.name}.pid"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


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
    parser.add_argument("action", choices=["up", "down", "status", "apply", "recover"])
    action = parser.parse_args(arguments).action
    try:
        settings = Settings.from_environment(os.environ)
        if action == "status":
            return 0 if report(settings) else 1
        {"up": up, "down": down, "apply": apply, "recover": recover}[action](settings)
    except ServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if action == "up":
        report(settings)
        _say(f"logs in {settings.home}; trigger a run at {settings.prefect_url}/deployments")
        if settings.prefect_database is None:
            _say("on SQLite, which answers triggers that overlap with 503; teams take PostgreSQL (docs/operations.md)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
