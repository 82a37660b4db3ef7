"""Loading a base: what it is called, what is said when it cannot be one, and how quiet that is."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.helpers import byte_tokenizer, tiny_base_dir
from tests.model.families import family_base
from tinylora import base_model
from tinylora.base_model import encode, load_base
from tinylora.config import RunSettings
from tinylora.errors import BaseModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may spoil."""
    return Path(shutil.copytree(tiny_base_dir(), tmp_path / "base"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def sentence(where: Path | str) -> str:
    with pytest.raises(BaseModelError) as raised:
        load_base(where)
    message = str(raised.value)
    assert message.startswith(f"{where}: ")
    assert "\n" not in message
    return message


# --- what a base is ---------------------------------------------------------------------------------------------------


def test_a_base_is_frozen_and_described(folder: Path) -> None:
    before = base_model.loads()
    base = load_base(folder)
    assert base_model.loads() == before + 1
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert base.facts.base_id == "base"
    assert base.facts.max_window_tokens == 64
    assert base.facts.feature_dim == base.routing_feature.dim == 256
    assert base.routing_feature.hash == base.facts.feature_hash
    assert base.facts.projections["self_attn.k_proj"].model_dump() == {
        "n_layers": 2,
        "in_features": 32,
        "out_features": 16,
    }


def test_narrower_features_are_asked_for(folder: Path) -> None:
    narrow = load_base(folder, feature_dim=8)
    assert narrow.facts.feature_dim == narrow.routing_feature.dim == 8
    assert narrow.facts.feature_hash == narrow.routing_feature.hash != load_base(folder).facts.feature_hash


def test_a_run_says_what_its_routers_read(folder: Path) -> None:
    """Another feature on the same weights in memory; a base that has it already is itself."""
    base = load_base(folder)
    plain, wide = (
        base.for_run(RunSettings.model_validate(choice))
        for choice in ({"router_feature": "embedding"}, {"router_dim": 300})
    )
    assert base.for_run(RunSettings()) is base
    assert (plain.facts.feature_dim, wide.facts.feature_dim) == (32, 300)
    assert plain.model is base.model
    for chosen in (plain, wide):
        assert chosen.routing_feature.hash == chosen.facts.feature_hash
        assert (
            chosen.facts.model_copy(update={"feature_dim": 256, "feature_hash": base.facts.feature_hash}) == base.facts
        )
    assert load_base(folder, feature_dim=300).facts == wide.facts


def test_the_dtype_is_chosen_and_the_name_stays(folder: Path) -> None:
    single, half, stored = (load_base(folder, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, None))
    assert [base.model.dtype for base in (single, half, stored)] == [torch.float32, torch.bfloat16, torch.float32]
    assert single.facts == half.facts == stored.facts


def test_the_name_does_not_depend_on_files_and_versions(folder: Path) -> None:
    name = load_base(folder).facts.fingerprint
    edit(folder / "config.json", transformers_version="4.0.0", _name_or_path="/somewhere", use_cache=False)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[5:], "model-00002-of-00002.safetensors": names[:5]}
    for part, members in parts.items():
        save_file({member: tensors[member] for member in members}, folder / part, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {member: part for part, members in parts.items() for member in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_base(folder).facts.fingerprint == name


def test_one_number_one_token_or_one_setting_is_another_name(folder: Path) -> None:
    facts = load_base(folder).facts
    edit(folder / "config.json", rms_norm_eps=1e-5)
    other_config = load_base(folder).facts
    assert other_config.fingerprint != facts.fingerprint
    edit(folder / "tokenizer_config.json", eos_token="<pad>")
    other_tokenizer = load_base(folder).facts
    assert other_tokenizer.tokenizer_fingerprint != facts.tokenizer_fingerprint
    assert other_tokenizer.fingerprint != other_config.fingerprint
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_base(folder).facts.fingerprint != other_tokenizer.fingerprint


def test_using_the_tokenizer_does_not_change_its_name(folder: Path) -> None:
    base = load_base(folder)
    base.tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert base_model.describe(base.model, base.tokenizer, "x").tokenizer_fingerprint == (
        base.facts.tokenizer_fingerprint
    )


def test_a_base_in_memory_is_described_too() -> None:
    left, right = family_base("llama"), family_base("llama")
    assert left.facts == right.facts
    with torch.no_grad():
        right.model.get_input_embeddings().weight[0, 0] += 1
    changed = base_model.describe(right.model, right.tokenizer, "llama")
    assert changed.fingerprint != left.facts.fingerprint


# --- what is no base --------------------------------------------------------------------------------------------------


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "no model in this folder; expected config.json" in sentence(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    assert "no such folder; expected a folder with a model, or a hub id" in sentence(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    assert "no such folder" in sentence(folder / "config.json")


def test_no_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    assert "no weights: expected model.safetensors" in sentence(folder)
    torch.save(tensors, folder / "pytorch_model.bin")
    assert "pickled weights are not opened" in sentence(folder)


def test_a_part_of_the_weights_is_missing(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "no weights" in sentence(folder)


def test_weights_cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert "cannot be loaded" in sentence(folder)


def test_weights_of_another_model(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "the weights lack model.layers.1.mlp.up_proj.weight and 1 more" in sentence(folder)


def test_weights_of_other_shapes(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=44)
    assert "cannot be loaded" in sentence(folder)


def test_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json is not readable as JSON" in sentence(folder)


@pytest.mark.parametrize("content", ["[]", '"llama"', '{"model_type": ["llama"]}'])
def test_config_of_another_kind(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json" in sentence(folder) or "no model type" in sentence(folder)


def test_no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer; expected tokenizer.json" in sentence(folder)


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    config = {"vocab_size": 100, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    wrapped = base_model.wrap_tokenizer(byte_tokenizer(), bos="<s>", eos="</s>", pad="<pad>", max_tokens=64)
    base_model.save_base(base_model.new_causal_lm("gpt2", config), wrapped, folder, dtype=torch.float32)
    assert "the tokenizer has 259 tokens, the model 100; they do not belong together" in sentence(folder)


def test_an_encoder_with_a_decoder(folder: Path) -> None:
    edit(folder / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])
    assert "T5ForConditionalGeneration is not a causal language model" in sentence(folder)


def test_a_masked_language_model(folder: Path) -> None:
    edit(folder / "config.json", model_type="bert", architectures=["BertForMaskedLM"])
    assert "BertForMaskedLM is not a causal language model" in sentence(folder)


def test_a_model_that_reads_both_ways(folder: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = base_model.new_causal_lm("bert", sizes | {"vocab_size": 300})
    wrapped = base_model.wrap_tokenizer(byte_tokenizer(), bos="<s>", eos="</s>", pad="<pad>", max_tokens=64)
    base_model.save_base(model, wrapped, folder, dtype=torch.float32)
    assert "its tokens see those that come after them" in sentence(folder)


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('was run')\n")
    edit(folder / "config.json", model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Mine"})
    assert "this version of transformers knows no model type 'mine'" in sentence(folder)
    edit(folder / "config.json", model_type="llama")
    assert load_base(folder).facts.projections


def test_a_model_without_blocks() -> None:
    base = family_base("llama")
    base.model.model.layers = torch.nn.ModuleList()
    with pytest.raises(BaseModelError, match="LlamaForCausalLM: no block with a linear was found"):
        base_model.find_linears(base.model)


# --- the hub ----------------------------------------------------------------------------------------------------------


def refuse(error: Exception):
    def model_info(where: str, timeout: float) -> None:
        raise error

    return model_info


def test_the_hub_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "model_info", refuse(ConnectionError("no route\nto host")))
    message = sentence("someone/some-model")
    assert "the hub is unreachable (no route); give the path of a local copy" in message


def test_the_hub_knows_no_such_model(monkeypatch: pytest.MonkeyPatch) -> None:
    error = huggingface_hub.errors.RepositoryNotFoundError.__new__(huggingface_hub.errors.RepositoryNotFoundError)
    monkeypatch.setattr(huggingface_hub, "model_info", refuse(error))
    assert "no model that the hub shows to you" in sentence("someone/some-model")


def test_a_copy_in_the_cache_needs_no_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "hub" / "models--someone--some-model"
    shutil.copytree(folder, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "huggingface_hub.file_download.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr(huggingface_hub, "model_info", refuse(AssertionError("asked the hub")))
    base = load_base("someone/some-model")
    assert base.facts.base_id == "someone/some-model"
    assert base.facts.fingerprint == load_base(folder).facts.fingerprint


# --- text -------------------------------------------------------------------------------------------------------------


def test_a_document_begins_and_ends(folder: Path) -> None:
    tokenizer = load_base(folder).tokenizer
    ids = encode(tokenizer, "ab")
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(ids[1:-1]) == "ab"
    assert encode(tokenizer, "") == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_long_text_is_whole_and_draws_no_warning(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_base(folder).tokenizer
    assert len(encode(tokenizer, "a" * 1000)) == 1002
    assert capfd.readouterr() == ("", "")


def test_markup_in_text_is_text(folder: Path) -> None:
    tokenizer = load_base(folder).tokenizer
    ids = encode(tokenizer, "a</s>b<s>")
    assert tokenizer.eos_token_id not in ids[1:-1] and tokenizer.bos_token_id not in ids[1:-1]
    assert tokenizer.decode(ids[1:-1]) == "a</s>b<s>"


def test_a_tokenizer_may_lack_begin_and_end() -> None:
    class Plain(SimpleNamespace):
        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    assert encode(Plain(bos_token_id=None, eos_token_id=None), "ab") == [97, 98]
    assert encode(Plain(bos_token_id=1, eos_token_id=None), "ab") == [1, 97, 98]


# --- silence ----------------------------------------------------------------------------------------------------------


def test_loading_says_nothing(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not even where the libraries have much to say: weights to report on, a hub to ask again and again."""
    (tmp_path / "empty").mkdir()
    load_base(folder)
    for where in (tmp_path / "empty", "someone/some-model"):
        with pytest.raises(BaseModelError):
            load_base(where)
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(BaseModelError, match="the weights lack"):
        load_base(folder)
    assert capfd.readouterr() == ("", "")


def test_the_libraries_may_speak_again_afterwards(folder: Path) -> None:
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    load_base(folder)
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == before
