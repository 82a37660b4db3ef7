"""The settings and the base of the federations in these tests."""

from tinylora.config import BaseFacts, ProjectionShape, RunSettings

DIM = 4
RANK = 2
FACTS = BaseFacts(
    base_id="fake",
    fingerprint="a" * 64,
    tokenizer_fingerprint="b" * 64,
    feature_dim=DIM,
    feature_hash="c" * 64,
    max_window_tokens=64,
    projections={"proj": ProjectionShape(n_layers=2, in_features=3, out_features=5)},
)
SETTINGS = RunSettings(
    name="test",
    depth=1,
    rank=RANK,
    leaf_steps=20,
    unit_steps=5,
    min_workers=2,
    min_sequences=1,
    window_tokens=8,
    first_deadline_s=60.0,
    start_after_s=100.0,
    probes=0,
)
