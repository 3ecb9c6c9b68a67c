"""What deploy/kubernetes promises beyond the schemas that deploy/kubernetes/check.sh checks."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from archiver import __version__

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
PARTS = ("base", "backfill")


def built(folder: Path) -> list[dict[str, Any]]:
    kubectl = Path(sys.executable).parent / "kubectl"
    command = [kubectl, "kustomize", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return list(yaml.safe_load_all(done.stdout))


@cache
def objects(part: str) -> dict[str, dict[str, Any]]:
    """The objects that a kustomization makes, by kind; each kind stands in it once."""
    by_kind = {item["kind"]: item for item in built(FOLDER / part)}
    assert len(by_kind) == len(built(FOLDER / part))
    return by_kind


def pod(part: str) -> dict[str, Any]:
    kind = "Deployment" if part == "base" else "Job"
    return objects(part)[kind]["spec"]["template"]["spec"]


def container(part: str) -> dict[str, Any]:
    (only,) = pod(part)["containers"]
    return only


@pytest.mark.parametrize("part", PARTS)
def test_the_pod_fits_the_restricted_standard(part):
    security = pod(part)["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(part)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(part)["automountServiceAccountToken"] is False
    kinds = {name for volume in pod(part)["volumes"] for name in volume}
    assert kinds == {"name", "secret", "emptyDir"}


@pytest.mark.parametrize("part", PARTS)
def test_what_each_part_leaves_room_for_and_leaves_out(part):
    """Room for a large segment below a read-only root; no variables named like our settings, no
    namespace, no secret; an image of this version."""
    (mount,) = [m for m in container(part)["volumeMounts"] if not m.get("readOnly")]
    (volume,) = [v for v in pod(part)["volumes"] if v["name"] == mount["name"]]
    assert (mount["mountPath"], volume["emptyDir"]["sizeLimit"]) == ("/tmp", "1Gi")
    assert pod(part)["enableServiceLinks"] is False
    assert "Secret" not in objects(part)
    assert not any("namespace" in item["metadata"] for item in objects(part).values())
    assert container(part)["image"].endswith(f":{__version__}")


@pytest.mark.parametrize("part", PARTS)
def test_secrets_come_as_files(part):
    (mount,) = [one for one in container(part)["volumeMounts"] if one["name"] == "secrets"]
    plain = [entry for entry in container(part)["env"] if entry["name"] != "ARCHIVER_SHARDS"]
    assert mount["readOnly"] is True
    assert plain
    for entry in plain:
        assert entry["name"].endswith("_FILE")
        assert entry["value"].startswith(mount["mountPath"] + "/")


@pytest.mark.parametrize("part", PARTS)
def test_every_setting_named_is_one_that_the_archiver_has(part):
    known = (ROOT / "config.example.env").read_text()
    names = {entry["name"] for entry in container(part)["env"]} | set(
        objects(part)["ConfigMap"]["data"]
    )
    names -= {"ARCHIVER_SHARDS", "AWS_SHARED_CREDENTIALS_FILE"}
    assert {name for name in names if f"{name.removesuffix('_FILE')}" not in known} == set()


def test_the_service_finds_the_loop_and_not_a_backfill():
    wanted = objects("base")["Service"]["spec"]["selector"].items()
    loop = objects("base")["Deployment"]["spec"]["template"]["metadata"]["labels"]
    backfill = objects("backfill")["Job"]["spec"]["template"]["metadata"]["labels"]
    assert wanted <= loop.items()
    assert not wanted <= backfill.items()


def test_the_loop_has_time_to_end_and_is_asked_on_the_metrics_port():
    assert pod("base")["terminationGracePeriodSeconds"] == 45
    paths = {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    for probe, path in paths.items():
        assert container("base")[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "metrics"}
    assert container("base")["ports"][0]["containerPort"] == 9464


def test_a_backfill_has_as_many_shares_as_pods():
    spec = objects("backfill")["Job"]["spec"]
    shards = [entry for entry in container("backfill")["env"] if entry["name"] == "ARCHIVER_SHARDS"]
    assert spec["completionMode"] == "Indexed"
    assert shards == [{"name": "ARCHIVER_SHARDS", "value": str(spec["completions"])}]


def test_what_each_exit_code_does_to_a_backfill():
    spec = objects("backfill")["Job"]["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    on_exit = {
        code: rule["action"]
        for rule in rules
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert on_exit == {1: "FailIndex", 2: "FailJob"}
    assert rules[0]["action"] == "Ignore", "a lost node is looked at before the exit code"
    assert spec["backoffLimitPerIndex"] > 0
    assert pod("backfill")["restartPolicy"] == "Never"


def test_the_overlay_of_the_readme_builds(tmp_path):
    readme = (FOLDER / "README.md").read_text()
    overlay = readme.split("```yaml\n")[1].split("```")[0]
    for part in ("config", "base"):
        source, copy = FOLDER / part, tmp_path / part
        copy.mkdir()
        for file in source.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    (tmp_path / "overlays" / "production").mkdir(parents=True)
    (tmp_path / "overlays" / "production" / "kustomization.yaml").write_text(overlay)
    made = {item["kind"]: item for item in built(tmp_path / "overlays" / "production")}
    settings = made["ConfigMap"]
    assert settings["data"]["ARCHIVER_S3_BUCKET"] == "call-archive-production"
    assert settings["data"]["ARCHIVER_WINDOW"] == "1h"
    (only,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert only["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
    assert only["image"].startswith("registry.example.org/")
