"""KubeRay manifests against the schemas of KubeRay, Kubernetes, Ray Serve and runtime_env."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.runtime_env import RuntimeEnv
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from tests.clusters.image import IN_THE_IMAGE, missing_packages, needed_by_ray

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "clusters" / "kuberay").glob("*.yaml"))
SCHEMA = yaml.safe_load((Path(__file__).parent / "schemas" / "kuberay-v1.yaml").read_text())


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def resource(name: str) -> dict[str, Any]:
    found = documents(ROOT / "clusters" / "kuberay" / name)
    return next(d for d in found if d["apiVersion"] == "ray.io/v1")


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec["rayClusterConfig"]


def groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_spec(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for group in groups(manifest) for c in group["template"]["spec"]["containers"]]


BOTH = pytest.mark.parametrize("name", ["rayjob.yaml", "rayservice.yaml"])


def test_every_manifest_is_tested_here() -> None:
    assert [path.name for path in MANIFESTS] == ["rayjob.yaml", "rayservice.yaml"]


def test_the_kuberay_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@BOTH
def test_fits_kuberay(name: str) -> None:
    jsonschema.validate(resource(name), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterSpec", "headGroupSpecs"), {}),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "shutdownAfterJobFinishes"), False),
        (("spec", "backOffLimit"), 1),
    ],
)
def test_the_schema_finds_what_is_wrong(path: tuple[str, ...], value: object) -> None:
    manifest = resource("rayjob.yaml")
    node = manifest
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMA)


@BOTH
def test_everything_else_fits_kubernetes(name: str) -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="Kubernetes' schemas are in the package kubernetes-validate"
    )
    path = ROOT / "clusters" / "kuberay" / name
    plain = [d for d in documents(path) if d["apiVersion"] == "v1"]
    pods = [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        for template in (group["template"] for group in groups(resource(name)))
    ]
    for document in (*plain, *pods):
        kubernetes_validate.validate(document, "1.34", strict=True)
    assert len(pods) == 2


@BOTH
def test_one_version_of_ray_everywhere(name: str) -> None:
    manifest = resource(name)
    version = cluster_spec(manifest)["rayVersion"]
    assert version == ray.__version__
    images = {container["image"] for container in containers(manifest)}
    assert all(re.fullmatch(rf"rayproject/ray:{version}-py311(-gpu)?", i) for i in images), images


@BOTH
def test_requests_are_limits(name: str) -> None:
    for container in containers(resource(name)):
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


@BOTH
def test_no_work_on_the_head_and_no_stranger_on_the_cluster(name: str) -> None:
    spec = cluster_spec(resource(name))
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["authOptions"] == {"mode": "token"}


@BOTH
def test_every_node_sees_the_shared_volume_and_no_secret_is_written_down(name: str) -> None:
    for container in containers(resource(name)):
        assert "/shared" in {mount["mountPath"] for mount in container["volumeMounts"]}
        token = next(entry for entry in container["env"] if entry["name"] == "HF_TOKEN")
        assert token.keys() == {"name", "valueFrom"}
        assert token["valueFrom"]["secretKeyRef"]["name"] == "huggingface"
    for group in groups(resource(name)):
        claims = [v.get("persistentVolumeClaim") for v in group["template"]["spec"]["volumes"]]
        assert {"claimName": "expo-ray-shared"} in claims


def test_the_job_ends_and_leaves_nothing_behind() -> None:
    spec = resource("rayjob.yaml")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0 and spec["backoffLimit"] >= 1
    claim = documents(ROOT / "clusters" / "kuberay" / "rayjob.yaml")[0]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_job_runs_a_recipe_that_exists_into_the_shared_volume() -> None:
    words = resource("rayjob.yaml")["spec"]["entrypoint"].split()
    assert words[:2] == ["python", "pipelines/run.py"]
    assert (ROOT / words[1]).is_file() and (ROOT / words[2]).is_file()
    assert any(word.startswith("output=/shared/") for word in words)


def runtime_envs() -> list[dict[str, Any]]:
    job = yaml.safe_load(resource("rayjob.yaml")["spec"]["runtimeEnvYAML"])
    serve = yaml.safe_load(resource("rayservice.yaml")["spec"]["serveConfigV2"])
    return [job, *(application["runtime_env"] for application in serve["applications"])]


def test_runtime_environments_are_valid_and_pinned_as_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0].lower(): line.split("==")[1] for line in lines if "==" in line}
    for environment in runtime_envs():
        RuntimeEnv(**environment)  # refuses wrong types and clashing fields
        for requirement in environment["pip"]:
            package, version = requirement.split("==")
            assert pins[package.lower()].split("+")[0] == version


def test_every_dependency_is_installed_or_in_the_image() -> None:
    job, service = runtime_envs()
    assert missing_packages(job["pip"], "lab") == set()
    assert missing_packages(service["pip"]) == set()
    assert IN_THE_IMAGE.keys() <= needed_by_ray()
    assert "typer" in missing_packages([each for each in job["pip"] if "typer" not in each])


def test_the_serve_configuration_fits_ray_serve() -> None:
    config = ServeDeploySchema.model_validate(
        yaml.safe_load(resource("rayservice.yaml")["spec"]["serveConfigV2"])
    )
    [application] = config.applications
    assert (application.route_prefix, config.http_options.port) == ("/", 8000)
    module, _, builder = application.import_path.partition(":")
    assert (module, builder) == ("expo_ray.serving.app", "build_app")
    assert application.args.keys() == {"model", "initial", "alpha", "num_replicas", "allowed_hosts"}
    workers = cluster_spec(resource("rayservice.yaml"))["workerGroupSpecs"]
    assert application.args["num_replicas"] == sum(group["replicas"] for group in workers)


def test_the_builder_takes_the_arguments_of_the_service(
    ray_cluster: str, pico_pair: tuple[Path, Path]
) -> None:
    from expo_ray.serving import app

    config = yaml.safe_load(resource("rayservice.yaml")["spec"]["serveConfigV2"])
    arguments = {
        **config["applications"][0]["args"],
        "initial": str(pico_pair[0]),
        "model": str(pico_pair[1]),
    }
    # What Ray Serve itself does with import_path and args; nothing is deployed.
    built = call_user_app_builder_with_args_if_necessary(app.build_app, arguments)
    assert isinstance(built, Application)
