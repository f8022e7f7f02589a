"""What DeepSpeed and the optimizer are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sra_core.config import AdaptConfig, DistillConfig, RunConfig
from sra_core.errors import ConfigError
from sra_core.training import Job, deepspeed_settings
from sra_core.training.module import parameter_groups
from sra_core.training.runtime import make_optimizer, start_processes


def settings(**fields: Any) -> dict[str, Any]:
    config = DistillConfig(**fields)
    return deepspeed_settings(config, config.batch_size, config.accumulation, "distill")


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.norm, self.frozen = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.objective = Student(), nn.Linear(4, 5, bias=False)

    def trainable(self) -> Any:
        return ((name, p) for name, p in self.student.named_parameters() if p.requires_grad)


def test_matrices_decay_norms_and_biases_do_not_and_projectors_have_their_own_rate() -> None:
    module: Any = Module()
    groups = parameter_groups(module, learning_rate=1e-3, projector_rate=2e-3, decay=0.1)
    student = module.student
    expected = [
        ([student.matrix.weight], 1e-3, 0.1),
        ([student.matrix.bias, student.norm.weight, student.norm.bias], 1e-3, 0.0),
        ([module.objective.weight], 2e-3, 0.1),
    ]
    assert len(groups) == 3
    for group, (parameters, rate, decay) in zip(groups, expected, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in parameters]
        assert (group["peak"], group["lr"], group["weight_decay"]) == (rate, rate, decay)
    optimizer = make_optimizer(groups)
    assert [group["peak"] for group in optimizer.param_groups] == [1e-3, 1e-3, 2e-3]


def test_an_objective_without_parameters_makes_no_group() -> None:
    module: Any = Module()
    module.objective = nn.Identity()
    assert len(parameter_groups(module, 1e-3, 1e-3, 0.0)) == 2


def test_the_config_decides_sizes_precision_and_partitioning() -> None:
    made = settings(batch_size=3, accumulation=4, zero_stage=2, precision="bfloat16", clip=0.5)
    assert made["train_micro_batch_size_per_gpu"] == 3
    assert made["gradient_accumulation_steps"] == 4
    assert made["gradient_clipping"] == 0.5
    assert made["zero_optimization"] == {"stage": 2}
    assert made["bf16"] == {"enabled": True}
    assert "fp16" not in made
    assert "bf16" not in settings()
    assert settings(precision="float16")["fp16"] == {"enabled": True}


def test_offload_goes_to_the_cpu() -> None:
    assert settings(zero_stage=1, offload=True)["zero_optimization"] == {
        "stage": 1,
        "offload_optimizer": {"device": "cpu"},
    }
    assert settings(zero_stage=3, offload=True)["zero_optimization"]["offload_param"] == {"device": "cpu"}
    with pytest.raises(ValidationError, match="nothing to offload under ZeRO 0"):
        DistillConfig(offload=True)


def test_the_users_settings_win_key_by_key() -> None:
    mine = {"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True, "bf16": {"x": 1}}
    made = settings(zero_stage=2, precision="bfloat16", deepspeed=mine)
    assert made["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert made["bf16"] == {"enabled": True, "x": 1}
    assert made["wall_clock_breakdown"] is True
    assert settings(zero_stage=2)["wall_clock_breakdown"] is False


@pytest.mark.parametrize(
    ("mine", "names"),
    [
        ({"train_batch_size": 8}, "train_batch_size"),
        ({"optimizer": {"type": "Adam"}}, "learning_rate"),
        ({"gradient_clipping": 1.0}, "clip"),
        ({"zero_optimization": {"stage": 3}}, "zero_stage"),
        ({"bf16": {"enabled": True}}, "precision"),
    ],
)
def test_settings_that_contradict_the_config_are_refused(mine: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        settings(deepspeed=mine)


def test_micro_batches_cut_a_batch_without_changing_the_step(tmp_path: Any) -> None:
    def job(**fields: Any) -> Job:
        config = RunConfig(distill=DistillConfig(**fields))
        return Job(config=config, prepared=tmp_path, teacher=None, initial=tmp_path, folder=tmp_path)

    assert (job(batch_size=8, accumulation=3).micro, job(batch_size=8, accumulation=3).forwards) == (8, 3)
    cut = job(batch_size=8, accumulation=3, micro_batch=2)
    assert (cut.micro, cut.forwards) == (2, 12)
    assert job(batch_size=8, micro_batch="auto").micro == 8
    with pytest.raises(ValidationError, match="does not divide batch_size 8"):
        DistillConfig(batch_size=8, micro_batch=3)


def test_an_adapter_alone_needs_an_adapter() -> None:
    assert AdaptConfig(merge=False).lora is not None
    with pytest.raises(ValidationError, match=r"adapt\.lora or merge"):
        AdaptConfig(merge=False, lora=None)


def test_a_job_survives_its_file(tmp_path: Any) -> None:
    config = RunConfig.model_validate({"adapt": {"enabled": True, "batch_size": 3}})
    job = Job(
        config=config,
        prepared=tmp_path / "p",
        teacher=tmp_path / "t",
        initial=tmp_path / "i",
        folder=tmp_path,
        part="adapt",
        micro_batch=2,
        session="s",
    )
    assert Job.load(job.save()) == job
    assert job.training is job.config.adapt
    assert job.objective.name == "sft"
    assert job.side == "teacher"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("LOCAL_RANK", "8")
    with pytest.raises(ConfigError, match="training process 8 of this machine has no GPU: there are 8") as caught:
        start_processes("cuda", "bfloat16")
    assert caught.value.remedy.startswith("set processes to 8 here, or let torchrun")
