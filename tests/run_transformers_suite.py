"""
transformers' own tests of a model, on MAGNET's classes and, for comparison, on the stock classes they stand before.

    python tests/run_transformers_suite.py                        # ModelTesterMixin, from the sdist on PyPI
    python tests/run_transformers_suite.py --tests <a checkout of transformers>/tests   # and GenerationTesterMixin

Needs `parameterized`. Prints what fails; ends with 1 if MAGNET fails where the stock class does not and BY_DESIGN has no
reason for it, with 2 where the sdist cannot be had. GenerationTesterMixin lies in a folder that the sdist leaves out: for
it, a checkout of the installed version is needed.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # some of the tests ask for a model called None, five times each

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402

from modeling_magnet import FAMILIES  # noqa: E402

FAMILIES_RUN = ("llama", "qwen3", "gemma3_text")
TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.1,
}
OWN = {"gemma3_text": {"layer_types": ["full_attention", "sliding_attention"], "query_pre_attn_scalar": 8}}
ADAPTER = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
NO_HEAD = "it loads a decoder's file as a model with a head, which MAGNET refuses: the head would be random"
BY_DESIGN = {  # test -> why MAGNET fails it
    "test_base_model_prefix_loads_base_weights": NO_HEAD,
    "test_correct_missing_keys": NO_HEAD,
    "test_model_weights_reload_no_missing_tied_weights": "it loads a file without any weights, which MAGNET refuses",
    "test_gradient_checkpointing_backward_compatibility": (
        "config.gradient_checkpointing, which activation_checkpointing_enable() replaced long ago, is spent on the stock "
        "decoder that ours takes the place of"
    ),
}


def download(folder: Path) -> Path:
    """The tests of the installed version, from its sdist."""
    package = f"transformers=={transformers.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    subprocess.run([*pip, "-d", str(folder), package], check=True)
    (archive,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return next(folder.glob("transformers-*/tests"))


def load_mixins(tests: Path):
    """ModelTesterMixin and GenerationTesterMixin; what the folder lacks is an empty class."""
    sys.path.insert(0, str(tests.parent))
    for path, name in (
        ("exporters/test_export", "ExportTesterMixin"),
        ("generation/test_utils", "GenerationTesterMixin"),
    ):
        if not (tests / f"{path}.py").exists():
            stub = types.ModuleType("tests." + path.replace("/", "."))
            setattr(stub, name, type(name, (), {}))
            sys.modules[stub.__name__] = stub
    common = importlib.import_module("tests.test_modeling_common")
    return common.ModelTesterMixin, common.GenerationTesterMixin


def classes_of(name: str, is_magnet: bool) -> list[type]:
    """Config, decoder, language model, token and sequence classifier."""
    magnet = FAMILIES[name].config_class
    config = magnet if is_magnet else magnet.base_config_class
    heads = ("", "ForCausalLM", "ForTokenClassification", "ForSequenceClassification")
    mappings = [getattr(transformers, f"AutoModel{head}")._model_mapping for head in heads]
    return [config, *(mapping[config] for mapping in mappings if config in mapping)]


def announce(name: str) -> None:
    """The mixin looks up by class name what a head is for."""
    lists = ("MODEL", "MODEL_FOR_CAUSAL_LM", "MODEL_FOR_TOKEN_CLASSIFICATION", "MODEL_FOR_SEQUENCE_CLASSIFICATION")
    for names, cls in zip(lists, classes_of(name, is_magnet=True)[1:]):
        getattr(modeling_auto, f"{names}_MAPPING_NAMES")[f"magnet_{name}"] = cls.__name__


def test_case(name: str, is_magnet: bool, mixins) -> type[unittest.TestCase]:
    config_class, *model_classes = classes_of(name, is_magnet)

    class Tester:
        batch_size, seq_length, is_training = 13, 7, True
        hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

        def get_config(self):
            # in causal mode too, where the adapter takes part in what is tried; without it, MAGNET is the stock class
            extra = {"adapter": ADAPTER, "causal_adapter": True} if is_magnet else {}
            return config_class(**TINY | OWN.get(name, {}) | extra)

        def prepare_config_and_inputs_for_common(self):
            ids = torch.randint(3, 99, (self.batch_size, self.seq_length))
            mask = torch.tril(torch.ones_like(ids))
            return self.get_config(), {"input_ids": ids, "attention_mask": mask}

    class Case(*mixins, unittest.TestCase):
        all_model_classes = tuple(model_classes)
        model_tester = Tester()

    Case.__name__ = Case.__qualname__ = f"{'Magnet' if is_magnet else 'Stock'}_{name}"
    return Case


def name_of(test) -> str:
    """Of the whole test, for one of its subtests as well."""
    return test.id().split()[0].rsplit(".", 1)[-1]


class Result(unittest.TestResult):
    """What failed tests said, and why others were skipped."""

    def __init__(self):
        super().__init__()
        self.said, self.left_out = {}, {}

    def note(self, test, error):
        self.said.setdefault(name_of(test), f"{error[0].__name__}: {str(error[1]).strip()}"[:300])

    def addFailure(self, test, error):
        self.note(test, error)

    addError = addFailure

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.left_out[name_of(test)] = reason

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.note(test, error)


def run(case: type[unittest.TestCase]) -> Result:
    result = Result()
    unittest.TestLoader().loadTestsFromTestCase(case).run(result)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, help="the folder tests/ of transformers; else that of the sdist")
    parser.add_argument("--families", nargs="*", default=FAMILIES_RUN, choices=list(FAMILIES))
    arguments = parser.parse_args()
    transformers.logging.disable_progress_bar()
    unexpected = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            tests = arguments.tests or download(Path(folder))
        except subprocess.CalledProcessError:
            print("The sdist of transformers cannot be had here.")
            return 2
        mixins = load_mixins(tests)
        for name in arguments.families:
            announce(name)
            stock, magnet = (run(test_case(name, is_magnet, mixins)) for is_magnet in (False, True))
            for title, result in (("stock", stock), ("MAGNET", magnet)):
                ran = result.testsRun - len(result.skipped)
                print(
                    f"{name}, {title}: {ran - len(result.said)} passed, {len(result.said)} failed, {len(result.skipped)} skipped"
                )
            for test, said in magnet.said.items():
                reason = BY_DESIGN.get(test) or (
                    "the stock class fails it too: " + said if test in stock.said else None
                )
                unexpected += reason is None
                print(f"  {test}: {reason or 'NOT EXPECTED: ' + said}")
            for test, reason in magnet.left_out.items():
                if test not in stock.left_out:
                    print(f"  {test}: skipped for MAGNET alone: {reason}")
    print(f"{unexpected} failures that are not expected")
    return int(unexpected > 0)


if __name__ == "__main__":
    sys.exit(main())
