"""The recipe of the demo base: a small Llama and its tokenizer, trained to its plateau on every demo domain.

    python -m tinylora.demo.make_base --out DIR            # an hour of one CPU core, more or less
    python -m tinylora.demo.make_base --out DIR --resume   # go on after an interruption
    python -m tinylora.demo.make_base --family bloom --like tinylora/demo/base --bf16 --out benchmarks/bloom

The last line makes a BLOOM of the same size with the tokenizer and the texts of another base. It takes no text that the
other did not see, so the other's fence (`seen_hashes.txt`) is its own.

Text comes from this machine (`corpus.py`, side `base` only) and stays there: what is written are weights, a tokenizer,
the curves of held-out loss per domain and the hashes of the texts that were seen.

The plateau is part of the recipe. The learning rate is constant for half of the steps, falls to `LOW_LR` of its peak
by three quarters, and is halved for the last fifth and again for the last tenth. `plateau()` then compares the held-out
loss of every domain at four fifths of the tokens with the loss at the end: under 0.5 % is the goal, `curves.json` says
what it is.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from tinylora import base_model
from tinylora.demo import corpus

CONFIG = {"vocab_size": 2048, "hidden_size": 96, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
FAMILY_CONFIGS = {  # 0.53 M parameters each, the embeddings tied to the head
    "llama": {
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    },
    "bloom": {  # ALiBi has no window; `seq_length` says for how many tokens it was trained
        "n_layer": 3,
        "n_head": 3,
        "seq_length": 256,
        "tie_word_embeddings": True,
    },
}
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
PEAK_LR = 4e-3
LOW_LR = 0.04  # of the peak, from three quarters of the steps on; halved for the last fifth and for the last tenth
MAX_BASE_CHARS = 4_000_000  # per domain
PLATEAU = 0.005


@dataclass(frozen=True)
class Recipe:
    """Sizes of one training; the defaults made the base that ships."""

    family: str = "llama"  # a key of `FAMILY_CONFIGS`
    is_bf16: bool = False  # products in bf16, weights and moments in fp32: half the time on a CPU that has them
    n_steps: int = 7000
    step_tokens: int = 4096
    window_tokens: int = 256
    first_window_tokens: int = (
        128  # attention is dear on a CPU: short windows until `short_share` of the steps are done
    )
    short_share: float = 0.52
    n_validation_windows: int = 16
    evaluate_every: int = 250
    seed: int = 0


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Byte-level BPE: every byte sequence has tokens, so no text of a volunteer is ever unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def token_stream(tokenizer: Tokenizer, documents: list[corpus.Document]) -> Tensor:
    """All documents of a domain as one stream: begin, text, end, begin, ..."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch([document.text for document in documents]):
        ids.extend(encoding.ids)
        ids.append(CONFIG["eos_token_id"])
    return torch.tensor(ids, dtype=torch.int16)


def learning_rate(step: int, n_steps: int) -> float:
    """Warm up, hold, cosine down to `LOW_LR` at three quarters; halved for the last fifth, and for the last tenth."""
    share = step / n_steps
    if step < 100:
        return PEAK_LR * (step + 1) / 100
    if share < 0.5:
        return PEAK_LR
    if share < 0.75:
        return PEAK_LR * (LOW_LR + (1 - LOW_LR) * 0.5 * (1 + math.cos(math.pi * (share - 0.5) / 0.25)))
    return PEAK_LR * LOW_LR * (1.0 if share < 0.8 else 0.5 if share < 0.9 else 0.25)


def plateau(curve: list[dict]) -> dict[str, float]:
    """Relative change of each domain's held-out nll over the last fifth of the tokens (negative: still falling)."""
    last = curve[-1]
    before = min(curve, key=lambda point: abs(point["tokens"] - 0.8 * last["tokens"]))
    return {name: last["nll"][name] / before["nll"][name] - 1 for name in last["nll"]}


class Trainer:
    """Draws windows from all domains alike and takes AdamW steps; `curve` collects the held-out losses."""

    def __init__(self, recipe: Recipe, train: dict[str, Tensor], validation: dict[str, Tensor]) -> None:
        self.recipe, self.train = recipe, train
        self.validation = {name: self._validation_windows(stream) for name, stream in validation.items()}
        torch.manual_seed(recipe.seed)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.model = base_model.new_causal_lm(recipe.family, CONFIG | FAMILY_CONFIGS[recipe.family])
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)
        self.curve: list[dict] = []

    def _validation_windows(self, stream: Tensor) -> Tensor:
        size, count = self.recipe.window_tokens, self.recipe.n_validation_windows
        starts = torch.linspace(0, len(stream) - size - 1, count).long()
        return torch.stack([stream[start : start + size] for start in starts]).long()

    def batch(self, window_tokens: int) -> Tensor:
        """Windows from domains drawn at random, all domains alike; `step_tokens` tokens in all."""
        names = sorted(self.train)
        windows = []
        n_windows = self.recipe.step_tokens // window_tokens
        for index in torch.randint(len(names), (n_windows,), generator=self.generator).tolist():
            stream = self.train[names[index]]
            start = int(torch.randint(len(stream) - window_tokens, (1,), generator=self.generator))
            windows.append(stream[start : start + window_tokens])
        return torch.stack(windows).long()

    def step(self, index: int) -> float:
        """One optimiser step at the recipe's learning rate; returns the loss in nats."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(index, self.recipe.n_steps)
        is_short = index < self.recipe.short_share * self.recipe.n_steps
        ids = self.batch(self.recipe.first_window_tokens if is_short else self.recipe.window_tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.recipe.is_bf16):
            loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def evaluate(self, n_steps_done: int) -> dict:
        """Held-out nll of every domain now, appended to the curve."""
        self.model.eval()
        nll = {name: self.model(input_ids=ids, labels=ids).loss.item() for name, ids in self.validation.items()}
        self.model.train()
        tokens = n_steps_done * self.recipe.step_tokens
        self.curve.append({"step": n_steps_done, "tokens": tokens, "nll": nll})
        return self.curve[-1]

    def save(self, file: Path) -> None:
        """Keep what is needed to go on: weights, moments, the order of windows, the curve."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "curve": self.curve}
        torch.save(state | {"generator": self.generator.get_state()}, file)

    def resume(self, file: Path) -> int:
        """Go on from `save`'s file; returns the number of steps that are done."""
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.curve = state["curve"]
        return self.curve[-1]["step"]


def make_base(out: Path, recipe: Recipe, *, is_resumed: bool = False, like: Path | None = None) -> None:
    """Gather text, train tokenizer and model, and write everything that ships into `out`.

    Beside `out` lies `<out>.training.pt` with the optimiser's state, for `is_resumed`; it does not ship. Where `like`
    names a base, its tokenizer is taken, and of the text only what that base saw.
    """
    domains = list(corpus.available_domains())
    base_documents = {d.name: corpus.read_documents(d, "base", max_chars=MAX_BASE_CHARS) for d in domains}
    heldout = {d.name: corpus.read_documents(d, "heldout", max_chars=300_000) for d in domains}
    if like is not None:
        base_documents = _only_seen(base_documents, frozenset((like / "seen_hashes.txt").read_text().split()))
        tokenizer = Tokenizer.from_file(str(like / "tokenizer.json"))
    elif is_resumed:  # packages may have come or gone meanwhile; the tokens may not change
        tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(doc.text for docs in base_documents.values() for doc in _first_chars(docs, 500_000))
    train = {name: token_stream(tokenizer, docs) for name, docs in base_documents.items()}
    validation = {name: token_stream(tokenizer, docs) for name, docs in heldout.items()}
    print({name: (len(train[name]), len(validation[name])) for name in train}, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    if like is None:
        _write_seen(out, base_documents)
    trainer = Trainer(recipe, train, validation)
    checkpoint = out.with_name(f"{out.name}.training.pt")
    first = trainer.resume(checkpoint) if is_resumed else trainer.evaluate(0)["step"]
    started = time.monotonic()
    for index in range(first, recipe.n_steps):
        loss = trainer.step(index)
        done = index + 1
        if done % recipe.evaluate_every == 0 or done == recipe.n_steps:
            point = trainer.evaluate(done)
            mean = sum(point["nll"].values()) / len(point["nll"])
            print(f"step {done} loss {loss:.3f} held-out {mean:.4f} {time.monotonic() - started:.0f} s", flush=True)
            trainer.save(checkpoint)
            _write(out, trainer, tokenizer, recipe, {name: len(stream) for name, stream in train.items()})


def _first_chars(documents: list[corpus.Document], max_chars: int) -> Iterator[corpus.Document]:
    n_chars = 0
    for document in documents:
        if n_chars < max_chars:
            yield document
        n_chars += len(document.text)


def _only_seen(
    documents: dict[str, list[corpus.Document]], seen_hashes: frozenset[str]
) -> dict[str, list[corpus.Document]]:
    return {name: [doc for doc in docs if doc.text_hash in seen_hashes] for name, docs in documents.items()}


def _write_seen(out: Path, documents: dict[str, list[corpus.Document]]) -> None:
    file = out / "seen_hashes.txt"
    before = file.read_text().split() if file.exists() else []
    hashes = {document.text_hash for docs in documents.values() for document in docs}
    file.write_text("\n".join(sorted(hashes.union(before))) + "\n")


def _write(out: Path, trainer: Trainer, tokenizer: Tokenizer, recipe: Recipe, train_tokens: dict[str, int]) -> None:
    fast = base_model.wrap_tokenizer(tokenizer, bos="<s>", eos="</s>", pad="<pad>", max_tokens=recipe.window_tokens)
    base_model.save_base(trainer.model, fast, out, dtype=torch.bfloat16)
    record = {"recipe": asdict(recipe), "train_tokens": train_tokens, "curve": trainer.curve}
    if len(trainer.curve) > 2:
        record["change_over_last_fifth"] = plateau(trainer.curve)
    (out / "curves.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Parse the command line and make the base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
    parser.add_argument("--steps", type=int, default=Recipe.n_steps)
    parser.add_argument("--family", choices=sorted(FAMILY_CONFIGS), default=Recipe.family)
    parser.add_argument("--bf16", action="store_true", help="products in bf16; weights and moments stay in fp32")
    parser.add_argument("--like", type=Path, metavar="BASE", help="a base whose tokenizer and texts are taken")
    parser.add_argument("--resume", action="store_true", help="go on from <out>.training.pt")
    arguments = parser.parse_args()
    recipe = Recipe(family=arguments.family, is_bf16=arguments.bf16, n_steps=arguments.steps)
    make_base(arguments.out, recipe, is_resumed=arguments.resume, like=arguments.like)


if __name__ == "__main__":
    main()
