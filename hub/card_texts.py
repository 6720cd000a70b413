"""The model card texts of each form: one entry per form, so that they can be compared."""

from dataclasses import dataclass

PAPER = (
    "[MAGNET](https://arxiv.org/abs/2501.08648) ([paper page](https://huggingface.co/papers/2501.08648); Khosla et al., "
    "ACL 2025)"
)
LIMITS = """
* What the base model gets wrong or says unfairly, this one does too: it was not taught facts, safety or instructions.
* Two inputs in one row (packing) see each other outside causal mode.
* Numbers differ in their last digits between machines, precisions and batch sizes."""
PINNING = """Loading with `trust_remote_code=True` runs these files. Read them, then pin the commit you have read: its 40-digit hash
stands in the page's history and is printed by the command. `magnet check` compares hashes and files.

```bash
git ls-remote https://huggingface.co/{name} HEAD
```

Pass it as `revision="<hash>"` to every `from_pretrained` and to `SentenceTransformer`: a branch name may move, a hash cannot."""


@dataclass(frozen=True)
class Words:
    """A form's metadata and texts. `snippet` is executed by a test; `{name}` and `{length}` are filled in."""

    title: str
    library: str
    pipeline: str
    relation: str
    tags: tuple[str, ...]
    summary: str
    snippet: str
    limits: str
    needs: str


THREE_MODES = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{name}"
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)

print(model.infill("Tom was hungry. <|gap|> He was full.", tokenizer{length}))  # hybrid attention
print(model.encode(["A cat sleeps.", "Rain fell."], tokenizer).shape)  # bidirectional attention
prompt = tokenizer("One day, a little girl", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20)[0]))  # causal attention
```

```python
from sentence_transformers import SentenceTransformer

sentences = SentenceTransformer("{name}", trust_remote_code=True)
print(sentences.encode(["A cat sleeps.", "Rain fell."]).shape)
```"""
MAGNET_TAGS = ("magnet", "text-infilling", "feature-extraction", "sentence-transformers", "custom_code")
MAGNET_LIMITS = """* Meant for filling gaps in text from both sides, for embedding sentences and words, and for going on with a text.
* `attn_implementation="flash_attention_2"` cannot do hybrid attention; `sdpa`, `eager` and `flex_attention` can."""
MAGNET_NEEDS = "Needs `transformers >= 5.23`; `SentenceTransformer` needs `sentence-transformers >= 6.0`."

FORMS = {
    "magnet": Words(
        title="MAGNET checkpoint",
        library="transformers",
        pipeline="text-generation",
        relation="finetune",
        tags=MAGNET_TAGS,
        summary=(
            "One set of weights that generates (causal attention), embeds (bidirectional) and fills gaps (hybrid), after "
            "{paper}. {causal}"
        ),
        snippet=THREE_MODES,
        limits=MAGNET_LIMITS,
        needs=MAGNET_NEEDS,
    ),
    "merged": Words(
        title="MAGNET checkpoint, adapter merged",
        library="transformers",
        pipeline="text-generation",
        relation="finetune",
        tags=MAGNET_TAGS,
        summary=(
            "One set of weights that generates (causal attention), embeds (bidirectional) and fills gaps (hybrid), after "
            "{paper}. The adapter is merged into the weights, so causal mode is adapted too, as in the paper."
        ),
        snippet=THREE_MODES,
        limits=MAGNET_LIMITS,
        needs=MAGNET_NEEDS,
    ),
    "encoder": Words(
        title="MAGNET encoder",
        library="sentence-transformers",
        pipeline="sentence-similarity",
        relation="finetune",
        tags=("magnet", "sentence-transformers", "sentence-similarity", "feature-extraction", "dense"),
        summary=(
            "Sentence vectors by a bidirectional decoder: the encoder of a model trained after {paper}, with its adapter merged. "
            "It is {stock}, made bidirectional by its `config.json`, so no code is loaded."
        ),
        snippet="""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}")
vectors = model.encode(["A cat sleeps.", "A kitten is napping.", "Rain fell."])
print(model.similarity(vectors, vectors))
```""",
        limits="""* Meant for comparing, searching and clustering sentences. It neither generates nor fills gaps, and does not refuse to.
* transformers below 5.3 ignores `is_causal: false` without a word, and then the vectors are wrong.""",
        needs="Needs `transformers >= 5.23` and `sentence-transformers >= 6.0`.",
    ),
    "generator": Words(
        title="MAGNET generator",
        library="transformers",
        pipeline="text-generation",
        relation="finetune",
        tags=("magnet", "text-generation"),
        summary=(
            "The causal mode of a model trained after {paper}, as {stock}, so no code is loaded. It is the "
            "base model itself unless the adapter was trained to act in causal mode too (`causal_adapter`)."
        ),
        snippet="""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
prompt = tokenizer("One day, a little girl", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20)[0]))
```""",
        limits="* Meant for going on with a text from left to right. It fills no gaps and is no encoder.",
        needs="Any engine that loads its base loads it.",
    ),
    "adapter": Words(
        title="MAGNET adapter",
        library="peft",
        pipeline="text-generation",
        relation="adapter",
        tags=("magnet", "lora", "text-infilling", "feature-extraction", "custom_code"),
        summary=(
            "The LoRA weights of a model that generates (causal attention), embeds (bidirectional) and fills gaps (hybrid), "
            "after {paper}. They go on a MAGNET base: on the plain base they load too, but its attention stays causal."
        ),
        snippet=THREE_MODES.split("\n\n```python\nfrom sentence")[0],
        limits=MAGNET_LIMITS,
        needs="Needs `transformers >= 5.23` and `peft`.",
    ),
}
