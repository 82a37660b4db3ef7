"""The canary audit: made-up strings are planted in a copy of the text, and how exposed they become is measured."""

import json
import secrets
from typing import Any

from tinylora.config import RunSettings
from tinylora_worker.agent.loading import make_trainer
from tinylora_worker.agent.options import Options
from tinylora_worker.limits import load
from tinylora_worker.preflight.audit import audit_lines
from tinylora_worker.preflight.telling import heading_lines
from tinylora_worker.talk import Talk
from tinylora_worker.wire.worker_pb2 import CanaryReport, CanaryRequest, LoadRequest

N_CANARIES, N_REPEATS = 8, 4
MAX_STEPS = 64


def run_audit(trainer: Any, settings: RunSettings, talk: Talk) -> CanaryReport:
    """Plant strings, train for a while, measure, and tell.

    Args:
        trainer: Has loaded base and text.
        settings: The run's.
        talk: Where it is told.
    """
    request = CanaryRequest(
        settings_json=settings.model_dump_json(),
        n_canaries=N_CANARIES,
        n_repeats=N_REPEATS,
        n_steps=min(settings.leaf_steps, MAX_STEPS),
        seed=secrets.randbits(32),
    )
    with talk.busy("trains on planted strings"):
        report = trainer.canary(request)
    talk.say(*heading_lines(audit_lines(report.exposures_bits, report.most_bits, report.n_extracted)), "")
    return report


def audit_alone(options: Options, talk: Talk, *, as_json: bool) -> None:
    """The audit without a run, with the settings that a run has by default.

    Raises:
        BaseModelError: The base cannot be loaded.
        DataError: There is no usable text.
        TrainerDied: The trainer did not live to see the end of it.
    """
    limits = load(options.home)
    request = LoadRequest(
        base=options.base,
        data=options.data,
        columns=dict(options.columns),
        device=options.device or limits.device,
        dtype=options.dtype,
        quantise=options.quantise,
        cpu_threads=options.threads,
        worker="audit",
        allow=options.allow,
    )
    with make_trainer(options.home, limits, talk.say) as trainer:
        trainer.start()
        with talk.busy("loads the base and reads the text"):
            trainer.load(request)
        report = run_audit(trainer, RunSettings(), talk)
    if as_json:
        found = {"exposures_bits": list(report.exposures_bits), "most_bits": report.most_bits}
        print(json.dumps(found | {"n_extracted": report.n_extracted}, indent=1))
