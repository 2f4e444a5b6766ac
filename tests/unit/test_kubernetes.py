"""What deploy/kubernetes and `studyhall launch kubernetes` hand to a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from _pytest.mark import ParameterSet

from studies.launch.kubernetes import LONGEST_NAME, Volume, WorkerJob, dns_label, is_dns_label
from tests.conftest import ROOT
from tests.support.waiting import GUARD

KUBERNETES = ROOT / "deploy" / "kubernetes"
WORKER = ROOT / "studies" / "launch" / "worker"
OVERLAYS = ("cpu", "gpu", "spot", "external-database")
#: The oldest that is promised, and the newest that the schemas' package knows.
VERSIONS = ("1.29", kubernetes_validate.latest_version())
#: Of kustomize, within kubectl: that takes components and several YAML features.
OLDEST_KUSTOMIZE = (4, 5)

Manifest = dict[str, Any]


@cache
def kubectl() -> str:
    """The command, which renders without a cluster; without it the test is skipped."""
    found = shutil.which("kubectl")
    if not found:
        pytest.skip("no kubectl here, whose `kubectl kustomize` renders the overlays")
    told = subprocess.run([found, "version", "--client", "-o", "json"], capture_output=True, text=True, check=True)
    kustomize = json.loads(told.stdout).get("kustomizeVersion", "v2.0.3")  # it says so since 1.24
    if tuple(int(part) for part in kustomize.removeprefix("v").split(".")[:2]) < OLDEST_KUSTOMIZE:
        pytest.skip(f"kubectl has kustomize {kustomize}; components and YAML's aliases need 4.5")
    return found


@cache
def rendered(overlay: str) -> list[Manifest]:
    done = subprocess.run([kubectl(), "kustomize", KUBERNETES / "overlays" / overlay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize has nothing to warn of"
    return list(yaml.safe_load_all(done.stdout))


def launched(**changes: Any) -> Manifest:
    """What the launcher prints, read back."""
    asked: dict[str, Any] = {
        "study": "mnist", "workers": 8, "gpus": 1, "image": "studyhall:0.1.0", "namespace": "studyhall"
    }  # fmt: skip
    manifest = yaml.safe_load(yaml.safe_dump(WorkerJob(**asked | changes).manifest()))
    assert isinstance(manifest, dict)
    return manifest


def files() -> list[Path]:
    """Every manifest as it lies there, apart from what only kustomize understands."""
    found = [*KUBERNETES.rglob("*.yaml"), *WORKER.glob("*.yaml")]
    return sorted(file for file in found if file.name != "kustomization.yaml")


LAUNCHES: dict[str, dict[str, Any]] = {
    "gpu": {},
    "cpu": {"gpus": 0},
    "spot": {"is_spot": True},
    "spot on cpus": {"is_spot": True, "gpus": 0},
    "a storage, volumes and a registry": {
        "storage": "postgresql://lab@db.example:5432/studies?sslmode=verify-full&sslrootcert=/etc/studyhall/ca/ca.crt",
        "volumes": (
            Volume(claim="sets", path="/data/sets", is_read_only=True),
            Volume(claim="c.2", path="/checkpoints"),
        ),
        "pull_secrets": ("registry",),
        "gpus": 2,
        "cpus_per_worker": 9,
    },
    "an odd study": {"study": "-Ünder $(PGPASSWORD) study/2 " + "x" * 80, "allow": ("lab.", "$(STUDY)")},
}


def everything() -> Iterator[ParameterSet]:
    for name, changes in LAUNCHES.items():
        yield pytest.param(launched(**changes), id=f"launch {name}")
    for file in files():
        for manifest in yaml.safe_load_all(file.read_text()):
            yield pytest.param(manifest, id=f"{file.relative_to(ROOT)} {manifest['metadata']['name']}")


def pod_of(manifest: Manifest) -> Manifest | None:
    pod = manifest["spec"].get("template", {}).get("spec") if "spec" in manifest else None
    assert pod is None or isinstance(pod, dict)
    return pod


def containers_of(manifest: Manifest) -> list[Manifest]:
    pod = pod_of(manifest) or {}
    return [*pod.get("initContainers", ()), *pod.get("containers", ())]


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = (m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)
    return found


@pytest.mark.parametrize("kubernetes", VERSIONS)
@pytest.mark.parametrize("manifest", [*everything()])
def test_each_manifest_is_as_the_schema_of_kubernetes_says(manifest: Manifest, kubernetes: str) -> None:
    kubernetes_validate.validate(manifest, kubernetes, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("kubernetes", VERSIONS)
def test_each_overlay_renders_to_what_the_schema_says(overlay: str, kubernetes: str) -> None:
    manifests = rendered(overlay)
    for manifest in manifests:
        kubernetes_validate.validate(manifest, kubernetes, strict=True)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "studyhall"
    kinds = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    assert kinds >= {
        ("Deployment", "dashboard"), ("Deployment", "mlflow"), ("Deployment", "mirror"), ("Job", "setup"),
        ("Job", "work-mnist"), ("Service", "dashboard"), ("Service", "mlflow"), ("NetworkPolicy", "default-deny"),
    }  # fmt: skip
    assert (("StatefulSet", "postgres") in kinds) == (overlay != "external-database")


def test_the_schema_finds_a_mistake() -> None:
    job = launched()
    job["spec"]["paralellism"] = 8
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


@pytest.mark.parametrize(("overlay", "changes"), [
    ("cpu", {"gpus": 0, "workers": 4}),
    ("gpu", {"workers": 2}),
    ("spot", {"is_spot": True}),
])  # fmt: skip
def test_the_launcher_prints_the_job_that_the_overlay_has(overlay: str, changes: Manifest) -> None:
    assert launched(**changes) == find(rendered(overlay), "Job", "work-mnist")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_pods_name_is_there(overlay: str) -> None:
    manifests = rendered(overlay)
    made = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    made |= {("Secret", "studyhall-database"), ("Secret", "studyhall-sites")}  # by hand, as the README says
    named = set()
    for manifest in manifests:
        for volume in (pod_of(manifest) or {}).get("volumes", ()):
            if "configMap" in volume and not volume["configMap"].get("optional"):
                named.add(("ConfigMap", volume["configMap"]["name"]))
            if "secret" in volume:
                named.add(("Secret", volume["secret"]["secretName"]))
        for container in containers_of(manifest):
            for variable in container.get("env", ()):
                for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                    if key in variable.get("valueFrom", {}):
                        named.add((kind, variable["valueFrom"][key]["name"]))
        if manifest["kind"] == "Service":
            labels = manifest["spec"]["selector"].items()
            assert any(
                labels <= m["spec"]["template"]["metadata"]["labels"].items() for m in manifests if containers_of(m)
            )
    assert named
    assert named <= made


def test_the_database_of_the_config_is_the_one_that_is_spoken_to() -> None:
    external = rendered("external-database")
    assert find(external, "ConfigMap", "studyhall-database")["data"]["address"] == "db.example:5432"
    here = rendered("gpu")
    host, _, port = find(here, "ConfigMap", "studyhall-database")["data"]["address"].partition(":")
    assert find(here, "Service", host)["spec"]["ports"][0]["port"] == int(port)


def secured(manifest: Manifest) -> None:
    """Assert what the standard `restricted` demands, and a little more."""
    pod = pod_of(manifest)
    assert pod is not None
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # else a Service `mlflow` sets MLFLOW_PORT
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] >= 1
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers_of(manifest):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
    assert not any("hostPath" in volume for volume in pod["volumes"])


def discreet(manifest: Manifest) -> None:
    """Assert that no password stands there."""
    assert manifest["kind"] != "Secret"
    for container in containers_of(manifest):
        for variable in container.get("env", ()):
            if "PASSWORD" in variable["name"] and not variable["name"].endswith("_FILE"):
                assert variable.get("valueFrom", {}).get("secretKeyRef"), variable
            assert "@" not in variable.get("value", "") or ":" not in variable["value"].split("@")[0].split("//")[1]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_locked_in_and_has_resources(overlay: str) -> None:
    pods = [manifest for manifest in rendered(overlay) if containers_of(manifest)]
    assert len(pods) >= 5
    for manifest in pods:
        secured(manifest)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_password_stands_in_a_manifest(overlay: str) -> None:
    for manifest in rendered(overlay):
        discreet(manifest)


@pytest.mark.parametrize("changes", LAUNCHES.values(), ids=LAUNCHES)
def test_the_launchers_job_is_locked_in_and_holds_no_password(changes: Manifest) -> None:
    job = launched(**changes)
    secured(job)
    discreet(job)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_has_a_version(overlay: str) -> None:
    images = {container["image"] for manifest in rendered(overlay) for container in containers_of(manifest)}
    assert images <= {f"studyhall:{version('studyhall')}", "postgres:17-bookworm"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whoever_serves_is_looked_after(overlay: str) -> None:
    served = [m for m in rendered(overlay) if any("ports" in container for container in containers_of(m))]
    assert {m["metadata"]["name"] for m in served} >= {"dashboard", "mlflow"}
    for manifest in served:
        (container,) = pod_of(manifest)["containers"]  # type: ignore[index]  # it has some
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["exec"]["command"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_speaks_with_the_sites_or_the_database_but_who_is_named(overlay: str) -> None:
    policies = [m for m in rendered(overlay) if m["kind"] == "NetworkPolicy"]
    deny = find(policies, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies:
        for rule in policy["spec"].get("ingress", ()):
            assert rule["from"]
            assert rule["ports"]
        for rule in policy["spec"].get("egress", ()):
            assert rule["to"]
            assert rule["ports"]


def test_a_job_ends_of_a_wrong_option_and_not_of_disruptions() -> None:
    spec = launched()["spec"]
    assert "completions" not in spec  # a work queue: done when a worker says so
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # or there may be no podFailurePolicy
    actions = {
        **{condition["type"]: rule["action"] for rule in spec["podFailurePolicy"]["rules"]
           for condition in rule.get("onPodConditions", ())},
        **{code: rule["action"] for rule in spec["podFailurePolicy"]["rules"]
           for code in rule.get("onExitCodes", {"values": ()})["values"]},
    }  # fmt: skip
    assert actions == {"DisruptionTarget": "Ignore", 2: "FailJob", 130: "Ignore", 143: "Ignore"}


def test_the_study_is_named_word_for_word() -> None:
    job = launched(study="a $(PGPASSWORD) study", allow=("$(STUDY)",))
    (worker,) = pod_of(job)["containers"]  # type: ignore[index]  # it is a Job
    # $(NAME) is Kubernetes's own, and $$ its way to say $.
    assert worker["args"] == ["work", "--allow=$$(STUDY)", "--", "$(STUDY)"]
    for container in containers_of(job):
        assert {"name": "STUDY", "value": "a $$(PGPASSWORD) study"} in container["env"]


@pytest.mark.parametrize(("study", "name"), [
    ("mnist", "work-mnist"),
    ("my-study-2", "work-my-study-2"),
    ("Mnist", "work-mnist-"),
    ("a b", "work-a-b-"),
    ("Größe/2", "work-gr-e-2-"),
    ("日本", "work-"),
    ("-x-", "work-x-"),
    ("x" * 52, "work-" + "x" * 52),
    ("x" * 53, "work-" + "x" * 43 + "-"),
])  # fmt: skip
def test_a_job_is_named_after_its_study_as_far_as_names_go(study: str, name: str) -> None:
    job = launched(study=study)
    given = job["metadata"]["name"]
    assert given.startswith(name)
    assert (len(given) == len(name)) == (not name.endswith("-"))
    assert is_dns_label(given)
    assert len(given) <= LONGEST_NAME
    assert launched(study=study)["metadata"]["name"] == given
    assert is_dns_label(job["metadata"]["labels"]["studyhall/study"])


def test_studies_that_differ_have_jobs_that_differ() -> None:
    names = ["a b", "a-b", "A b", "a_b", "a--b", "x" * 60, "x" * 61]
    assert len({dns_label(name, 40) for name in names}) == len(names)


def test_a_launch_does_not_change_the_next() -> None:
    before = launched(study="one")
    launched(study="two", is_spot=True, gpus=4)
    assert launched(study="one") == before


def test_more_gpus_in_a_pod_are_asked_for() -> None:
    (worker,) = pod_of(launched(gpus=4))["containers"]  # type: ignore[index]  # it is a Job
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "4"
    (worker,) = pod_of(launched(gpus=0))["containers"]  # type: ignore[index]
    assert "nvidia.com/gpu" not in worker["resources"]["limits"]


def test_the_job_has_the_storage_the_volumes_and_the_registry_that_were_given() -> None:
    job = launched(**LAUNCHES["a storage, volumes and a registry"])
    pod = pod_of(job) or {}
    for container in containers_of(job):
        named = {variable["name"]: variable for variable in container["env"]}
        assert named["STUDYHALL_STORAGE"]["value"].startswith("postgresql://lab@db.example:5432/studies?")
        assert named["PGPASSWORD"]["valueFrom"]["secretKeyRef"] == {"name": "studyhall-database", "key": "worker"}
        assert not [name for name in named if name.startswith("DATABASE")]
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    (worker,) = pod["containers"]
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
    }
    mounts = {
        mount["mountPath"]: (claims[mount["name"]], mount["readOnly"])
        for mount in worker["volumeMounts"]
        if mount["name"] in claims
    }
    assert mounts == {"/data/sets": ("sets", True), "/checkpoints": ("c.2", False)}
    # Two GPUs with nine cores each, and twice the memory of one.
    assert worker["resources"] == {
        "requests": {"cpu": "18", "memory": "16Gi"},
        "limits": {"cpu": "18", "memory": "32Gi", "nvidia.com/gpu": "2"},
    }


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_the_end_of_a_pod_waits_until_the_worker_hears_of_it() -> None:
    # A process that hears SIGTERM only after a while, as Python does while it imports PyTorch.
    code = (
        "import signal, sys; print(flush=True); sys.stdin.readline(); "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print(flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as work:
        assert work.stdin
        assert work.stdout
        work.stdout.readline()
        (worker,) = pod_of(launched())["containers"]  # type: ignore[index]  # it is a Job
        command = [
            part.replace("/proc/1/", f"/proc/{work.pid}/") for part in worker["lifecycle"]["preStop"]["exec"]["command"]
        ]
        hook = subprocess.Popen(command)
        with pytest.raises(subprocess.TimeoutExpired):
            hook.wait(1)
        work.stdin.write("\n")
        work.stdin.flush()
        work.stdout.readline()
        assert hook.wait(GUARD) == 0
        work.send_signal(signal.SIGTERM)
        assert work.wait(GUARD) == 7


def test_a_worker_waits_until_its_study_is_there(tmp_path: Path) -> None:
    (wait,) = pod_of(launched())["initContainers"]  # type: ignore[index]  # it is a Job
    # A studyhall that finds the study once a file is there, and sleep without its patience.
    for name, text in {"studyhall": 'echo "error: $*" >&2; test -e ready', "sleep": "exec /bin/sleep 0.1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STUDY": "-my study"}
    with subprocess.Popen(wait["command"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr
        assert waiting.stderr.readline() == "error: status -- -my study\n"
        waiting.stderr.readline()
        (tmp_path / "ready").touch()
        assert waiting.wait(GUARD) == 0
    (tmp_path / "ready").unlink()
    (tmp_path / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 600\n")
    with subprocess.Popen(
        wait["command"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as waiting:
        assert waiting.stderr
        waiting.stderr.readline()
        waiting.terminate()
        assert waiting.wait(GUARD) == 143
        with suppress(ProcessLookupError):
            os.killpg(waiting.pid, signal.SIGKILL)  # the sleep is left
