"""What `trainer: modelopt` asks of a job and a cluster: only what its training script can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from kldcloud.errors import UserError
from kldcloud.spec.fields import refused

if TYPE_CHECKING:
    from kldcloud.spec.cluster import ClusterSpec
    from kldcloud.spec.qad_job import QadJob

MODELOPT: Final = "modelopt"
_DEFAULTS: Final = {
    "lr": 1e-5,
    "final_lr": 0.0,
    "patience": "never",
    "precision": "bfloat16",
    "recompute": True,
}
"""Those of its QAD configuration, configs/train/qad_nvfp4.yaml and configs/accelerate/fsdp2.yaml of
its example."""


def with_its_defaults(job: Any) -> Any:  # noqa: ANN401 - pydantic hands over what was given
    """A job as it was given, with what it leaves open as Model Optimizer has it, if that trains."""
    student = job.get("student") if isinstance(job, Mapping) else None
    if not isinstance(student, Mapping) or student.get("trainer") != MODELOPT:
        return job
    train = job.get("train")
    if train is not None and not isinstance(train, Mapping):
        return job
    given = {name: value for name, value in (train or {}).items() if value is not None}
    return {**job, "train": {**_DEFAULTS, **given}}


def check_options(job: QadJob) -> None:
    """Refuse what Model Optimizer's training script has no flag for.

    Raises:
        PydanticCustomError: says which field.
    """
    if job.student.format != "nvfp4":
        raise refused("modelopt trains nvfp4 alone: write nvfp4", "student", "format")
    if job.export.to != "hf":
        reason = "modelopt exports a folder (its GGUF is made beside it): write hf"
        raise refused(reason, "export", "to")
    if job.train.patience != "never":
        reason = "modelopt trains all steps and keeps the best checkpoint: write never"
        raise refused(reason, "train", "patience")
    if job.train.skip_below is not None:
        raise refused("modelopt trains in any case: leave it out", "train", "skip_below")
    if job.train.precision == "float32":
        raise refused("modelopt trains in bfloat16: leave it out", "train", "precision")
    if not job.train.recompute:
        raise refused("modelopt keeps no activations: leave it out", "train", "recompute")
    if job.checkpoints.every != job.eval.every:
        reason = f"modelopt keeps the best of what it looks at and saves: write {job.eval.every}"
        raise refused(f"{reason}, as in eval.every", "checkpoints", "every")


def check_cluster(job: QadJob, cluster: ClusterSpec) -> None:
    """Refuse machines that Model Optimizer cannot train on, as far as their file tells.

    Raises:
        UserError: says which field of the cluster file.
    """
    if job.student.trainer != MODELOPT:
        return
    needs = f"trainer: modelopt trains on all NVIDIA GPUs of one machine, and {job.cluster}"
    if cluster.nodes != 1:
        raise UserError(f"{needs} has nodes: {cluster.nodes}", hint="write nodes: 1 there")
    if cluster.workers != "auto":
        raise UserError(f"{needs} has workers: {cluster.workers}", hint="write workers: auto there")
    if cluster.remote and not any(map(_may_have_gpus, _alternatives(cluster.resources))):
        raise UserError(
            f"{needs} asks for none",
            hint="write resources: {accelerators: H100:8} there, or student.trainer: kldcloud",
        )


def _may_have_gpus(resources: Mapping[str, Any]) -> bool:
    """Whether they ask for GPUs, or for a machine whose name may mean some."""
    return bool(resources.get("accelerators") or resources.get("instance_type"))


def _alternatives(resources: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """SkyPilot's resources, and each entry of `any_of` or `ordered`."""
    found = [resources]
    for key in ("any_of", "ordered"):
        entries = resources.get(key)
        if isinstance(entries, list | tuple):
            found += [each for each in entries if isinstance(each, Mapping)]
    return found
