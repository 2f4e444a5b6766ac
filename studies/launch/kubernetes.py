"""The Job that runs a study's workers on Kubernetes: the one of ``deploy/kubernetes``, for one's own study.

The manifest and its patches lie in ``worker/``, where kustomize takes them from, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

#: The longest name of a Job: a pod's name has six letters more, and must be a host name.
LONGEST_NAME: Final = 57
#: Of a worker's pod.
DATA_DIR: Final = Path("/data")
#: Where a pod has the authority of the database's certificate, of the ConfigMap studyhall-database-ca.
CA_DIR: Final = "/etc/studyhall/ca"
_PREFIX: Final = "work-"
_LABEL: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A PersistentVolumeClaim, and where a pod has it."""

    claim: str
    path: str
    is_read_only: bool = False


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """The settings of a Job."""

    study: str
    workers: int
    """Pods, 1 or more."""
    gpus: int
    """Of each pod, which runs a worker on each; 0: one worker on a CPU core."""
    image: str
    namespace: str
    cpus_per_worker: int = 1
    """Of a worker on a GPU, where they are more than a GPU's share in ``gpu/patch.yaml``."""
    storage: str | None = None
    """Its URL without a password; ``None`` for the one of the ConfigMap ``studyhall-database``."""
    pull_secrets: Sequence[str] = ()
    """Of the image's registry."""
    volumes: Sequence[Volume] = ()
    is_spot: bool = False
    """Whether the machines may be taken away at any time."""
    allow: Sequence[str] = ()
    """As of ``studyhall work --allow``."""
    objective: str | None = None
    """As of ``studyhall work --objective``: where the image has the study's script."""
    allow_changed: bool = False
    """As of ``studyhall work --allow-changed``."""

    @property
    def name(self) -> str:
        """The Job's: the same for the same study, so that applying it again changes it."""
        return _PREFIX + dns_label(self.study, LONGEST_NAME - len(_PREFIX))

    def manifest(self) -> dict[str, Any]:
        """The Job, as ``kubectl apply`` takes it."""
        job: dict[str, Any] = _read("job.yaml")
        if self.gpus:
            job = _merged(job, _read("gpu/patch.yaml"))
        if self.is_spot:
            job = _merged(job, _read("spot/patch.yaml"))
        template = job["spec"]["template"]
        job["metadata"] |= {"name": self.name, "namespace": self.namespace}
        for labels in (job["metadata"]["labels"], template["metadata"]["labels"]):
            labels["studyhall/study"] = dns_label(self.study)
        job["spec"]["parallelism"] = self.workers
        pod = template["spec"]
        for container in (*pod["initContainers"], *pod["containers"]):
            container["image"] = self.image
            _variable(container, "STUDY")["value"] = _verbatim(self.study)
            if self.storage:
                container["env"] = [each for each in container["env"] if not each["name"].startswith("DATABASE")]
                _variable(container, "STUDYHALL_STORAGE")["value"] = _verbatim(self.storage)
        (worker,) = pod["containers"]
        command, *names = worker["args"]
        options = [f"--allow={_verbatim(prefix)}" for prefix in self.allow]
        options += [f"--objective={_verbatim(self.objective)}"] if self.objective else []
        options += ["--allow-changed"] if self.allow_changed else []
        worker["args"] = [command, *options, *names]
        if self.gpus:
            _scale(worker["resources"], self.gpus, self.cpus_per_worker)
        if self.pull_secrets:
            pod["imagePullSecrets"] = [{"name": name} for name in self.pull_secrets]
        for i, volume in enumerate(self.volumes):
            name = f"volume-{i}"
            claim = {"claimName": volume.claim, "readOnly": volume.is_read_only}
            pod["volumes"].append({"name": name, "persistentVolumeClaim": claim})
            mount = {"name": name, "mountPath": volume.path, "readOnly": volume.is_read_only}
            worker["volumeMounts"].append(mount)
        return job


def _scale(resources: dict[str, dict[str, str]], gpus: int, cpus_per_worker: int) -> None:
    """Ask for ``gpus`` times what the patch asks for one GPU, and for at least the workers' cores."""
    for asked in resources.values():
        asked["cpu"] = str(gpus * max(int(asked["cpu"]), cpus_per_worker))
        asked["memory"] = f"{gpus * int(asked['memory'].removesuffix('Gi'))}Gi"
    resources["limits"]["nvidia.com/gpu"] = str(gpus)


def is_dns_label(text: str) -> bool:
    """Whether Kubernetes takes ``text`` for the name of a Job or a namespace."""
    return len(text) <= 63 and _LABEL.fullmatch(text) is not None


def dns_label(text: str, longest: int = 63) -> str:
    """``text``, if it may be a name in Kubernetes, else what is left of it and a hash of all of it."""
    if is_dns_label(text) and len(text) <= longest:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    rest = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[: longest - len(digest) - 1].strip("-")
    return f"{rest}-{digest}" if rest else digest


def _read(name: str) -> Any:
    # Parsed at each call: the caller changes the result, and YAML aliases share objects.
    return _without_aliases(_load(name))


@cache
def _load(name: str) -> Any:
    import yaml

    return yaml.safe_load((resources.files("studies.launch") / "worker" / name).read_text(encoding="utf-8"))


def _without_aliases(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_aliases(item) for key, item in value.items()}
    return [_without_aliases(item) for item in value] if isinstance(value, list) else value


def _merged(base: Any, patch: Any) -> Any:
    """``base`` changed by a strategic merge patch: maps by key, lists of named things by name; else replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {key: _merged(base[key], item) if key in base else item for key, item in patch.items()}
    if isinstance(base, list) and all(isinstance(item, dict) and "name" in item for item in [*base, *patch]):
        changes = {item["name"]: item for item in patch}
        return [_merged(item, changes.get(item["name"], {})) for item in base]
    return patch


def _variable(container: dict[str, Any], name: str) -> dict[str, Any]:
    return next(variable for variable in container["env"] if variable["name"] == name)


def _verbatim(text: str) -> str:
    """``text`` where Kubernetes reads $(NAME) as the variable of that name."""
    return text.replace("$", "$$")
