"""64 accidents, numbered: each gives the right result, or an error that names parameter, value, reason and fix.

What a fault's number stands for is in `FAULTS`. It is tried below, in the tests that `ELSEWHERE` names, or both; `STOCK` lists
what is left to the libraries MAGNET extends, and why.
"""

import contextlib
import copy
import functools
import json
import pickle
import re
import shutil
from pathlib import Path

import families
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from reference import padding_mask
from surviving import train
from training import make_trainer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from magnet_hub.save import save_checkpoint
from magnet_train.settings.recipes import parse
from magnet_train.survival.complete import mark_complete, read_complete
from modeling_magnet import FAMILIES, Gap

FAULTS = {
    "C1": "attention_mode misspelt",
    "C2": "attention_mode of another type",
    "C3": "unknown key",
    "C4": "heads that do not divide the width",
    "C5": "token id out of the vocabulary",
    "C6": "loss weights and temperature",
    "C7": "mask shares",
    "C8": "span lengths and counts",
    "C9": "hybrid without spans",
    "C10": "plain config read as MAGNET's",
    "M11": "spans of a wrong shape, type or mode",
    "M12": "span in two pieces",
    "M13": "rows of spans or context alone",
    "M14": "row of padding",
    "M15": "token id the embedding lacks",
    "M16": "no token, one token",
    "M17": "longer than the positions",
    "M18": "flash attention in hybrid mode",
    "M19": "modes mixed in a batch",
    "M20": "causal by accident",
    "I21": "no text around a gap",
    "I22": "text on one side",
    "I23": "no gap, or one too many",
    "I24": "gaps that contradict",
    "I25": "lengths and room",
    "I26": "search and sampling settings",
    "I27": "control tokens spelt in a text",
    "I28": "empty fill",
    "I29": "batch of unlike gaps",
    "I30": "seeds and threads",
    "I31": "infill() of another checkpoint",
    "E32": "strange texts",
    "E33": "what is no text",
    "E34": "text too long",
    "E35": "batches, orders, padding",
    "E36": "16 threads",
    "E37": "truncate_dim",
    "E38": "prompt_name",
    "E39": "no trust in remote code",
    "D40": "empty data, wrong column",
    "D41": "text too short for a span",
    "D42": "batch without a target",
    "D43": "duplicates among negatives",
    "D44": "pair of equals, or of one",
    "D45": "bad rows and files",
    "D46": "data changed since the checkpoint",
    "D47": "evaluation text in the training text",
    "T48": "loss not finite",
    "T49": "training settings out of range",
    "T50": "out of memory",
    "T51": "SIGTERM and Ctrl-C",
    "T52": "same seed twice",
    "T53": "resume at any step",
    "T54": "another run resumed",
    "K55": "kill -9 in a save",
    "K56": "disk full",
    "K57": "two processes, one folder",
    "K58": "checkpoint file lost or damaged",
    "K59": "tensors not the configuration's",
    "K60": "odd folders",
    "K61": "malicious files",
    "K62": "code edited",
    "H63": "push refused or cut",
    "H64": "pull offline, wrong or cut",
}

ELSEWHERE = """
    C5  tests/test_check.py::test_settings_that_cannot_be_or_name_other_code
    C6  tests/test_arguments.py::test_wrong_value_is_named
    C6  tests/test_objectives.py::test_a_step_without_any_weight_is_refused
    C7  tests/test_arguments.py::test_wrong_value_is_named
    C7  tests/test_arguments.py::test_values_at_the_limits_are_taken
    C8  tests/test_arguments.py::test_wrong_value_is_named
    C8  tests/test_run.py::test_check_lengths
    C10 tests/test_configuration.py::test_a_base_becomes_magnet_and_is_itself_again
    C10 tests/test_loading.py::test_a_base_folder_with_a_fresh_adapter
    M13 tests/test_modes.py::test_hybrid_of_one_kind_of_token_is_a_pure_mode
    M14 tests/test_losses.py::test_no_target_gives_zero_and_no_gradient
    M17 tests/test_infill_exact.py::test_positions_never_exceed_the_limit
    M18 tests/test_modes.py::test_flash_attention_is_refused_in_hybrid_mode
    M20 tests/test_modes.py::test_reachability
    M20 tests/test_causal_parity.py::test_attentions
    I22 tests/test_infill_exact.py::test_a_ragged_batch_equals_one_at_a_time
    I22 tests/test_infill_exact.py::test_a_leading_gap_needs_a_token_that_opens_a_text
    I23 tests/test_infill_options.py::test_many_gaps
    I26 tests/test_cli_infill.py::test_errors_name_what_is_wrong
    I27 tests/test_infill_text.py::test_control_tokens_of_the_text_never_become_control_ids
    I27 tests/test_infill_text.py::test_control_tokens_never_appear_in_fills
    I27 tests/test_encode.py::test_control_tokens_stay_text
    I27 tests/test_data.py::test_control_tokens_spelt_out_in_a_text_stay_text
    I28 tests/test_infill_options.py::test_a_fill_has_a_token_unless_fewer_are_allowed
    I29 tests/test_infill_exact.py::test_a_batch_of_gaps_of_all_kinds_equals_one_at_a_time
    I30 tests/test_infill_exact.py::test_a_seed_decides_what_is_sampled
    I30 tests/test_infill_exact.py::test_threads_give_what_one_thread_gives
    I31 tests/test_cli_infill.py::test_the_model_is_the_flag_then_the_environment_then_the_shipped_one
    I31 tests/test_infill_exact.py::test_a_mode_in_the_configuration_changes_nothing
    E32 tests/test_encode.py::test_encode_equals_a_computation_by_hand
    E33 tests/test_encode.py::test_what_is_no_text_is_refused
    E33 tests/test_encode.py::test_shapes
    E34 tests/test_encode.py::test_long_texts_lose_their_end_but_not_eos
    E34 tests/test_sentence_transformer.py::test_texts_at_the_limit_keep_their_end_token
    E35 tests/test_encode.py::test_batch_size_and_order_change_nothing
    E35 tests/test_encode.py::test_pool_ignores_padding_on_either_side
    E36 tests/test_soak.py::test_threads_of_mixed_calls_give_the_results_of_single_calls
    E36 tests/test_encode.py::test_threads_give_the_results_of_one_thread
    E37 tests/test_sentence_transformer.py::test_truncated_vectors_and_similarity
    E38 tests/test_sentence_transformer.py::test_prompts_of_the_paper_by_name
    E39 tests/test_checkpoint.py::test_without_trust_it_refuses_to_load
    D40 tests/test_reading.py::test_a_source_without_text_is_refused
    D40 tests/test_reading.py::test_a_wrong_column_names_the_columns
    D40 tests/test_streaming.py::test_a_stream_without_text_is_refused
    D41 tests/test_views.py::test_short_texts
    D41 tests/test_data.py::test_what_is_in_the_data_is_logged_and_what_is_alarming_warned_of
    D42 tests/test_trainer.py::test_a_batch_without_any_target_trains_nothing
    D42 tests/test_trainer.py::test_a_batch_of_one_repeated_pair_has_no_negative
    D43 tests/test_losses.py::test_repeated_texts_are_no_negatives
    D43 tests/test_reading.py::test_groups_join_pairs_that_share_a_text_on_either_side
    D44 tests/test_reading.py::test_a_pair_with_one_side_missing_is_named_or_skipped
    D44 tests/test_data.py::test_what_is_in_the_data_is_logged_and_what_is_alarming_warned_of
    D45 tests/test_reading.py::test_a_bad_row_is_named_by_file_and_line_or_skipped_and_counted
    D45 tests/test_reading.py::test_a_damaged_file_is_named_and_never_skipped
    D46 tests/test_survival.py::test_a_changed_run_is_refused_with_every_difference
    D46 tests/test_data.py::test_fingerprint_changes_with_the_data_alone
    D47 tests/test_data.py::test_what_is_in_the_data_is_logged_and_what_is_alarming_warned_of
    D47 tests/test_evaluate_data.py::test_evaluation_text_in_the_training_text_is_counted
    T48 tests/test_training.py::test_a_loss_that_is_not_finite_stops_the_run
    T48 tests/test_objectives.py::test_a_broken_loss_names_its_rows
    T48 tests/test_survival.py::test_an_error_outside_a_save_is_not_touched
    T50 tests/test_objectives.py::test_out_of_memory_says_what_was_in_the_step_and_what_to_change
    T51 tests/test_survival.py::test_a_signal_saves_and_leaves
    T51 tests/test_survival.py::test_ctrl_c_twice_leaves_at_once
    T52 tests/test_from_python.py::test_the_same_seed_trains_the_same_weights
    T53 tests/test_resume.py::test_resumed_at_any_step_the_weights_are_the_same
    T54 tests/test_survival.py::test_a_changed_run_is_refused_with_every_difference
    K55 tests/test_survival.py::test_killed_at_any_moment_the_run_resumes_bit_exact
    K56 tests/test_survival.py::test_a_disk_that_fills_up_while_writing
    K56 tests/test_trust.py::test_what_was_trained_is_kept_where_the_checkpoint_finds_no_room
    K57 tests/test_survival.py::test_a_run_does_not_mix_with_another
    K58 tests/test_survival.py::test_a_damaged_file_is_seen
    K58 tests/test_check.py::test_a_damaged_header
    K59 tests/test_loading.py::test_a_missing_tensor
    K59 tests/test_loading.py::test_an_extra_tensor
    K59 tests/test_loading.py::test_a_config_that_is_not_that_of_the_weights
    K59 tests/test_trust.py::test_weights_that_are_not_finite_are_refused_by_name
    K60 tests/test_run.py::test_an_output_dir_that_cannot_be_made_is_refused_first
    K60 tests/test_survival.py::test_a_moved_run_with_another_log_interval_is_the_same_run
    K60 tests/test_forms.py::test_nothing_is_written_over
    K61 tests/test_trust.py::test_no_pickle_is_read
    K61 tests/test_trust.py::test_no_weights_are_read_outside_the_folder
    K61 tests/test_trust.py::test_no_configuration_chooses_a_kernel
    K62 tests/test_check.py::test_code_that_was_edited_is_named_and_never_run
    H63 tests/test_push.py::test_a_refusal_is_one_line
    H63 tests/test_push.py::test_tokens
    H63 tests/test_push.py::test_the_library_tries_uploads_again
    H63 tests/test_push.py::test_a_commit_whose_answer_is_lost_is_not_made_twice
    H64 tests/test_push.py::test_a_fresh_process_loads_revisions_after_a_cut_connection
    H64 tests/test_push.py::test_offline_takes_what_is_cached_and_names_what_is_not
    H64 tests/test_push.py::test_two_processes_fetch_the_same_code_at_once
"""
ELSEWHERE = [line.split() for line in ELSEWHERE.strip().splitlines()]

STOCK = {
    "C4": "the family's own configuration and layers say it, the sizes in the message",
    "M15": "torch's IndexError; looking at every id would synchronise with the GPU in each forward",
    "M16": "a row of no tokens is torch's own error, as in every stock decoder; encode() and infill() make no such row",
    "M17": "forward() extrapolates rotary positions, as every stock decoder; encode(), infill() and training count",
    "I26": "generate() takes top_p above 1 as no limit; `magnet infill` refuses it",
    "I30": "sampling draws from torch's one generator, which threads share; generate() takes none of its own",
    "E37": "sentence-transformers slices by it: 0 gives no dimension, -1 all but the last, and too large a number all",
    "E38": "sentence-transformers names the prompts there are",
    "K57": "the Trainer has no lock: one would outlive a killed run. A folder with checkpoints is refused without `resume`",
    "K58": "sizes are compared, not contents, so a flipped bit goes unseen: hashing is the file system's work",
    "K59": "from_pretrained() takes NaN, as transformers does; commands and `magnet check` refuse it, training stops at it",
}

TRIED = set()  # the faults of the rows below
ONE = "Tom was <|gap|> sad."
LENGTH = 6
GOOD = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 2]])
NAMES = pytest.mark.parametrize("name", families.NAMES)
build_magnet = functools.cache(families.build_magnet)  # nothing here changes them


def row(fault: str, *values):
    """A case of a fault, whose number and name are its id."""
    TRIED.add(fault)
    return pytest.param(*values, id=f"{fault} {FAULTS[fault]}")


def rows(fault: str, told: str, name: str, *values, **others):
    """A case of an argument for each value, which stands for {} in the message."""
    return [row(fault, others | {name: value}, told.replace("{}", repr(value))) for value in values]


@contextlib.contextmanager
def refused(told: str, *errors):
    """Expects an error whose message has every part of `told`."""
    with pytest.raises(errors or ValueError) as error:
        yield
    assert [part for part in told.split(" ... ") if part not in str(error.value)] == [], error.value


# ------------------------------------------------------------------------------------------------------- configuration

WAYS = {
    "built": lambda kind, value, path: kind(attention_mode=value),
    "set": lambda kind, value, path: setattr(kind(), "attention_mode", value),
    "read": lambda kind, value, path: AutoConfig.from_pretrained(path),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "value", [row("C1", "bidirectionl"), row("C2", None), row("C2", 7), row("C2", True), row("C2", ["causal"])]
)
@NAMES
def test_modes_of_a_configuration(name, value, way, tmp_path):
    kind = FAMILIES[name].config_class
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind.model_type, "attention_mode": value}))
    with refused(f"'attention_mode' ... ('causal', 'bidirectional', 'hybrid'), got {value}", StrictDataclassError):
        WAYS[way](kind, value, tmp_path)


MISSPELT = {
    "attention_mod": "attention_mode",
    "attention_modes": "attention_mode",
    "causal_adaptor": "causal_adapter",
    "infil_end_token_id": "infill_end_token_id",
    "infill_free_offset": "infill_free_offsets",
    "text_start_token": "text_start_token_id",
    "mask_token": "mask_token_id",
}


@pytest.mark.parametrize("misspelt, meant", [row("C3", *names) for names in MISSPELT.items()])
@NAMES
def test_keys_of_a_configuration(name, misspelt, meant):
    with refused(f"{misspelt}=5: unknown setting. Did you mean '{meant}'?"):
        FAMILIES[name].config_class(**{misspelt: 5})


TOKEN_IDS = ("mask_token_id", "text_start_token_id", "infill_end_token_id")


@pytest.mark.parametrize(
    "field, value, told",
    [
        *(row("C5", field, value, "must lie in 0..96") for field in TOKEN_IDS for value in (-1, 97)),
        *(row("C5", field, value, "expected int") for field in TOKEN_IDS for value in ("_", 2.5, True)),
    ],
)
@NAMES
def test_token_ids_of_a_configuration(name, field, value, told):
    with refused(f"{field} ... {value} ... {told}", ValueError, StrictDataclassError):
        FAMILIES[name].config_class(**families.TINY | {field: value})


# ----------------------------------------------------------------------------------------------- forward and generate()


@pytest.fixture(scope="module", params=[("llama", "eager"), ("gemma3_text", "sdpa")], ids="-".join)
def model(request):
    return build_magnet(*request.param)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 97, (2, LENGTH), generator=torch.Generator().manual_seed(11))


HYBRID, BOTH_WAYS = {"attention_mode": "hybrid"}, {"attention_mode": "bidirectional"}
MODES = "attention_mode={}: must be one of ['causal', 'bidirectional', 'hybrid']"
NO_HYBRID = "span_ids and span_mask mean nothing in attention_mode={}: use 'hybrid'"
OTHER_MASKS = [torch.ones(shape) for shape in ((2, 1, 6, 6), (2, 5), (2, 9), (1, 6), (6,))]
WRONG_SPANS = [
    row("M11", GOOD[:, :5], "span_ids has shape (2, 5): must be (batch, length) = (2, 6)"),
    row("M11", GOOD[:1], "span_ids has shape (1, 6): must be (batch, length) = (2, 6)"),
    row("M11", GOOD[0], "span_ids has shape (6,): must be (batch, length) = (2, 6)"),
    row("M11", GOOD.float(), "span_ids has dtype torch.float32: must be an integer tensor"),
    row("M11", GOOD > 0, "span_ids has dtype torch.bool: must be an integer tensor (use span_mask= for booleans)"),
    row("M11", GOOD - 1, "span_ids holds negative values: use 0 for context tokens"),
    row("M12", torch.tensor([[0, 1, 0, 1, 0, 0], [0] * 6]), "row 0: a span is not contiguous ([0, 1, 0, 1, 0, 0])"),
    row("M12", torch.tensor([[0] * 6, [1, 1, 2, 2, 1, 0]]), "row 1: a span is not contiguous ... an id of its own"),
]


@pytest.mark.parametrize("spans, told", WRONG_SPANS)
def test_spans(model, ids, spans, told):
    with refused(told):
        model(ids, attention_mode="hybrid", span_ids=spans)


@pytest.mark.parametrize(
    "arguments, told",
    [
        *rows("C1", MODES, "attention_mode", "bidirectionl", "Causal", ""),
        *rows("C2", MODES, "attention_mode", 7, True, ["causal"]),
        row("C9", HYBRID, "attention_mode='hybrid' needs span_ids (batch, length), or use attention_mode='causal'"),
        *rows(
            "M11",
            "span_mask has dtype ... must be torch.bool ... span_ids=",
            "span_mask",
            GOOD,
            GOOD.float(),
            **HYBRID,
        ),
        *rows("M11", "has shape (2, 4): must be (batch, length) = (2, 6)", "span_mask", GOOD[:, :4] > 0, **HYBRID),
        *rows("M11", "either span_ids or span_mask, not both", "span_mask", GOOD > 0, span_ids=GOOD, **HYBRID),
        *rows("M11", NO_HYBRID, "attention_mode", "causal", "bidirectional", span_ids=GOOD),
        *rows("M11", NO_HYBRID, "attention_mode", "causal", "bidirectional", span_mask=GOOD > 0),
        *rows("M11", "attention_mode='causal': use 'hybrid'", "span_ids", GOOD),
        *rows("M11", "attention_mask has shape ( ... = (2, 6)", "attention_mask", *OTHER_MASKS, **BOTH_WAYS),
        *rows(
            "M11", "attention_mask has shape ( ... = (2, 6)", "attention_mask", *OTHER_MASKS, span_ids=GOOD, **HYBRID
        ),
        # else bidirectional without the adapter, and a race with other threads
        *rows("M20", "is_causal={}: pass attention_mode=", "is_causal", True, False),
        *rows("M20", "is_causal={}: pass attention_mode=", "is_causal", True, False, **BOTH_WAYS),
    ],
)
def test_forward(model, ids, arguments, told):
    with refused(told):
        model(ids, **arguments)


@pytest.mark.parametrize(
    "misspelt, meant", [row("C3", "attention_mod", "attention_mode"), row("C3", "span_id", "span_ids")]
)
@NAMES
def test_a_misspelt_argument_is_not_swallowed(name, ids, misspelt, meant):
    """A stock forward takes any keyword in silence: the call would be causal."""
    for module in (build_magnet(name), build_magnet(name).model):
        with refused(f"{misspelt}='hybrid': unknown argument. Did you mean '{meant}'?"):
            module(ids, **{misspelt: "hybrid"})


@pytest.mark.parametrize("mode", [row("M14", mode) for mode in ("causal", "bidirectional", "hybrid")])
@pytest.mark.parametrize("impl", ["eager", "sdpa"])
@NAMES
def test_a_row_of_nothing_but_padding_is_finite(name, impl, ids, mode):
    model = build_magnet(name, impl)
    kwargs = {"attention_mask": padding_mask([LENGTH, 0], LENGTH, "right"), "attention_mode": mode}
    if mode == "hybrid":
        kwargs["span_ids"] = GOOD * kwargs["attention_mask"]
    logits = model(ids, **kwargs).logits
    assert logits.isfinite().all()
    gradients = torch.autograd.grad(logits.sum(), list(model.parameters()), allow_unused=True)
    assert all(grad.isfinite().all() for grad in gradients if grad is not None)
    alone = {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in kwargs.items()}
    with torch.no_grad():
        torch.testing.assert_close(logits[:1], model(ids[:1], **alone).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", [row("M16", mode) for mode in ("causal", "bidirectional")])
@NAMES
def test_both_or_neither_kind_of_input(name, ids, mode):
    model = build_magnet(name)
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}):
        with refused("exactly one of input_ids or inputs_embeds"):
            model(**inputs, attention_mode=mode)


@pytest.mark.parametrize("arguments", [row("M16", BOTH_WAYS), *(row("M16", HYBRID | {"span": n}) for n in (0, 1))])
@NAMES
def test_one_token_is_the_same_in_every_mode(name, arguments):
    one, model = torch.tensor([[5]]), build_magnet(name, "sdpa", causal_adapter=True)
    spans = {"span_ids": torch.tensor([[arguments["span"]]])} if "span" in arguments else {}
    with torch.no_grad():
        found = model(one, attention_mode=arguments["attention_mode"], **spans).logits
        torch.testing.assert_close(found, model(one).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("impl", [row("M19", "eager"), row("M19", "sdpa")])
@NAMES
def test_rows_of_every_mode_side_by_side(name, impl, ids):
    model = build_magnet(name, impl, causal_adapter=True)
    spans = torch.tensor([[0] * 6, [1] * 6, [0, 1, 1, 0, 0, 2]])
    with torch.no_grad():
        together = model(ids[:1].repeat(3, 1), attention_mode="hybrid", span_ids=spans).logits
        alone = [model(ids[:1], **BOTH_WAYS).logits, model(ids[:1]).logits]
        alone.append(model(ids[:1], attention_mode="hybrid", span_ids=spans[2:]).logits)
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "mode, filled, spans, told",
    [
        row("M20", "bidirectional", True, {}, "cache is not empty ... 'hybrid'"),
        row("M20", "hybrid", False, {}, "attention_mode='bidirectional' first ... infill()"),
        row("M20", "hybrid", True, {"span_ids": GOOD}, "pass no span_ids"),
    ],
)
def test_caches(model, ids, mode, filled, spans, told):
    cache = DynamicCache()
    if filled:
        with torch.no_grad():
            model(ids, attention_mode="bidirectional", cache=cache)
        assert cache.get_seq_length() == LENGTH
    with refused(told):
        model(ids, attention_mode=mode, cache=cache, **spans)


@pytest.mark.parametrize("part", [row("M20", "model"), row("M20", "decoder")])
def test_a_cache_by_its_old_name(model, ids, part):
    """As in transformers' models: it counts as the cache, in every mode."""
    called, cache = model if part == "model" else model.model, DynamicCache()
    with torch.no_grad():
        called(ids, attention_mode="bidirectional", past_key_values=cache)
    assert cache.get_seq_length() == LENGTH
    with refused("cache is not empty ... 'hybrid'"):
        called(ids, attention_mode="bidirectional", past_key_values=cache)


@pytest.mark.parametrize("given", [row("M20", {}), row("M20", {"use_cache": True})])
@NAMES
def test_only_causal_mode_makes_a_cache(name, ids, given):
    model = build_magnet(name)
    with torch.no_grad():
        assert model(ids, **given).cache.get_seq_length() == LENGTH
        assert model(ids, **given, attention_mode="bidirectional").cache is None
        assert model(ids, **given, attention_mode="hybrid", span_ids=GOOD).cache is None


@pytest.mark.parametrize("mode", [row("M20", "bidirectional"), row("M20", "hybrid")])
@NAMES
def test_generate_in_another_mode(name, ids, mode):
    model = copy.copy(build_magnet(name))
    model.config = copy.deepcopy(model.config)
    with refused(f"attention_mode='{mode}' cannot generate ... infill()"):
        model.generate(ids, attention_mode=mode, max_new_tokens=2)
    model.config.attention_mode = mode
    with refused(f"attention_mode='{mode}' cannot generate"):
        model.generate(ids, max_new_tokens=2)
    assert model.generate(ids, attention_mode="causal", max_new_tokens=2).shape[1] > LENGTH


# ------------------------------------------------------------------------------------------------ infill() and encode()


@pytest.fixture(scope="module")
def writer(text_magnet):
    return text_magnet()


TEXTS_AND_GAPS = [
    row("I21", "<|gap|>", "inputs[0]: no text around the gap. Use generate()"),
    row("I21", [Gap()], "inputs[0]: no text around the gap"),
    row("I21", [ONE, ["", Gap(), ""]], "inputs[1]: no text around the gap"),
    row("I23", "", "inputs[0]: no gap. Mark one with '<|gap|>', or use generate()"),
    row("I23", "Tom was sad.", "inputs[0]: no gap"),
    row("I23", r"Tom was \<|gap|> sad.", "inputs[0]: no gap"),
    row("I23", [ONE, "no gap here"], "inputs[1]: no gap"),
    row("I23", [ONE, []], "inputs[1]: no gap"),
    row("I23", [["Tom"]], "inputs[0]: no gap"),
    row("I24", "Tom <|gap|><|gap|> sad.", "inputs[0]: two gaps touch ... put text between"),
    row("I24", [Gap(2), Gap(3), " sad."], "inputs[0]: two gaps touch"),
    row("I24", ["Tom ", Gap(2), "", Gap(3), " sad."], "inputs[0]: two gaps touch"),
    row("I24", [ONE, "a<|gap|>b<|gap|><|gap|>"], "inputs[1]: two gaps touch"),
    row("I24", "a <|gap:x|> b <|gap:x|>", "inputs[0]: the gaps are named ['x', 'x']: a name may be there once"),
    row("I24", "a <|gap:my name|> b", "<|gap:my name|>: a gap's name must be of letters ... Rename it"),
    row("I24", "a <|gap:|> b <|gap|>", "<|gap:|>: a gap's name must be"),
    row("I25", ["Tom" + " was" * 599, Gap(1)], "inputs[0]: ... 512; 0 positions are left for the gaps. Shorten"),
    row(
        "I25", ["Tom" + " was" * 299, Gap(100), ".", Gap(150)], "512; 210 positions are left"
    ),  # [BOS], 300 words, "."
    row("I25", ["Tom" + " was" * 449, Gap((1, 5))], "512; 61 positions are left"),  # a free gap takes its whole offset
    row("I25", [ONE, " and<|gap|>" * 60], "inputs[1]: ... exceed max_position_embeddings=512; 451 positions are left"),
    row("E33", None, "inputs=None: must be a string"),
    row("E33", 123, "inputs=123: must be a string"),
    row("E33", [None], "inputs[0]: None is neither a string nor a list"),
    row("E33", [ONE, 123], "inputs[1]: 123 is neither a string nor a list"),
    row("E33", ["Tom ", Gap(), 123], "inputs[0]=123: must be a string"),
    row("E33", [ONE, ["Tom ", Gap(), None]], "inputs[1]=None: must be a string"),
    row("E33", "Tom \ud800 <|gap|>", "inputs[0]: the character at 4 is half of a surrogate pair; clean the text"),
]
LENGTHS, NO_LENGTH = (0, -1, True, "5", 2.5, "long"), "inputs[0]: length={}: must be a positive integer"
RANGES = ((5, 2), (0, 0), (-1, 2), (1, 2, 3), (1, True), (1.0, 2), ())
LIMITS = (
    "inputs[0]: fewest and most tokens are {} (length, or min_new_tokens and max_new_tokens): must be two integers"
)
MOST = LIMITS.replace("{}", "(1, {})")
SETTINGS = [
    *rows("I25", NO_LENGTH, "length", *LENGTHS, None),
    *rows("I25", LIMITS, "length", *RANGES),
    *rows("I25", MOST, "max_new_tokens", 0, -1, True, "5", 2.5),
    *rows("I25", LIMITS.replace("{}", "({}, 64)"), "min_new_tokens", 65, -1, True, "5", None),
    *rows("I25", "a gap of up to {} tokens ... at most 64 (config.infill_free_offsets)", "max_new_tokens", 65, 10**9),
    *rows("I25", "a gap of up to 1000000000 tokens ... Pass less, or an exact length", "length", (1, 10**9)),
    *rows(
        "I25", "5 tokens of text and gaps of [{}] positions exceed max_position_embeddings=512", "length", 508, 10**9
    ),
    *rows("I26", "num_beams={}: more than there are tokens to begin with (vocab_size=4096)", "num_beams", 10**6),
    *rows("I26", "num_candidates or num_return_sequences={}: more than", "num_candidates", 10**6),
    *rows("I26", "num_candidates or num_return_sequences={}: more than", "num_return_sequences", 10**6),
    *rows(
        "I26",
        "num_candidates={}: must not be below num_return_sequences=3",
        "num_candidates",
        2,
        num_return_sequences=3,
    ),
]
for name in ("batch_size", "join_tokens", "num_return_sequences", "num_beams", "num_candidates"):
    SETTINGS += rows("I26", f"{name}={{}}: must be a positive integer", name, 0, -1, True, "2", 1.5)


@pytest.fixture
def infill(writer, tokenizer, monkeypatch):
    """`infill(**arguments)`, which is to be refused before anything is computed."""

    def never(*args, **kwargs):
        raise AssertionError("the model was run")

    monkeypatch.setattr(writer.model, "forward", never)
    return functools.partial(writer.infill, tokenizer=tokenizer)


@pytest.mark.parametrize("inputs, told", TEXTS_AND_GAPS)
def test_texts_and_gaps(infill, inputs, told):
    with refused(told):
        infill(inputs, length=8)


@pytest.mark.parametrize("settings, told", SETTINGS)
def test_settings(infill, settings, told):
    with refused(told):
        infill(ONE, **settings)


@pytest.mark.parametrize(
    "gap, told",
    [
        *rows("I25", NO_LENGTH, "length", *LENGTHS),
        *rows("I25", LIMITS, "length", *RANGES),
        *rows("I25", MOST, "max_new_tokens", 0, -1, True, "5", 2.5, length="auto"),
    ],
)
def test_lengths_of_a_gap(infill, gap, told):
    for inputs, number in ((["Tom was ", Gap(**gap), " sad."], 0), ([ONE, ["Tom was ", Gap(**gap), " sad."]], 1)):
        with refused(told.replace("[0]", f"[{number}]")):
            infill(inputs, length=4)


@pytest.mark.parametrize(
    "settings, told",
    [  # generate()'s own words
        row("I26", {"num_return_sequences": 2}, "Greedy ... num_return_sequences"),
        *rows(
            "I26", "`temperature` (={}) has to be a strictly positive float", "temperature", 0.0, -1.0, do_sample=True
        ),
        *rows("I26", "`top_k` has to be a strictly positive integer, but is {}", "top_k", -1, do_sample=True),
        *rows("I26", "`top_p` has to be a float > 0 and < 1, but is {}", "top_p", -1.0, do_sample=True),
    ],
)
def test_settings_that_generate_refuses(writer, tokenizer, settings, told):
    with refused(told):
        writer.infill(ONE, tokenizer, length=4, **settings)


@pytest.mark.parametrize("beams", [row("I26", 10**6)])
def test_a_generation_config_that_asks_for_too_much(text_magnet, tokenizer, beams):
    model = text_magnet()
    model.generation_config.num_beams = beams
    with refused(f"num_beams={beams}: more than there are tokens"):
        model.infill(ONE, tokenizer, length=4)


@pytest.mark.parametrize("settings", [row("I25", {"max_new_tokens": 10**9}), row("I25", {"length": (1, 513)})])
def test_far_too_much_without_an_end_token(text_magnet, tokenizer, settings):
    with refused("a gap of up to ... tokens ... Pass less, or an exact length"):
        text_magnet(infill_end_token_id=None).infill(ONE, tokenizer, **settings)


@pytest.mark.parametrize("text", [row("E32", "x" * 10**6), row("E32", "\N{WOMAN}\u200d" * 10**5)])
def test_a_megabyte_of_text(writer, tokenizer, text):
    """One word, or one emoji."""
    assert abs((writer.encode(text, tokenizer) ** 2).sum() - 1) < 1e-5


# ------------------------------------------------------------------------------------------------------------- training

BASE = ["--model_name_or_path", "base", "--train_file", "texts.txt", "--use_cpu"]
LEAST = "must be {} or more, and finite"
NOTHING = "the first step would train nothing. Set a weight above 0, or sscl_start_step=0"


@pytest.mark.parametrize(
    "flags, told",
    [
        row("C6", "--lambda_mntp 0 --lambda_msg 0 --lambda_sscl 0", f"lambda_sscl=0.0 ... {NOTHING}"),
        row("C6", "--lambda_mntp 0 --lambda_msg 0", f"lambda_sscl=9.0, sscl_start_step=3400: {NOTHING}"),
        row("C6", "--lambda_msg inf", f"lambda_msg=inf: {LEAST.format(0)}"),
        row("C6", "--temperature inf", "temperature=inf: must be positive ... an infinite one learns nothing"),
        row("C6", "--temperature nan", "temperature=nan: must be positive. The paper's is 0.1"),
        row("C8", "--max_spans -1", f"max_spans=-1: {LEAST.format(0)}"),
        row("C8", "--max_length 8", f"max_length=8: {LEAST.format(9)}"),
        row("C8", "--pair_max_length 2", f"pair_max_length=2: {LEAST.format(3)}"),
        row("C8", "--free_offset 0", f"free_offset=0: {LEAST.format(1)}"),
        row("T49", "--shuffle_window 0", f"shuffle_window=0: {LEAST.format(1)}"),  # `datasets`' word for all rows
        row("T49", "--sscl_start_step nan", f"sscl_start_step=nan: {LEAST.format(0)}"),
        row("T49", "--sscl_chunk_size -1", f"sscl_chunk_size=-1: {LEAST.format(0)}"),
        row("T49", "--sscl_dropout 1.5", "sscl_dropout=1.5: must be 0 or more and below 1"),
        row("T49", "--per_device_train_batch_size 0", f"per_device_train_batch_size=0: {LEAST.format(1)}"),
        row(
            "T49",
            "--per_device_pair_batch_size 0",
            "per_device_pair_batch_size=0: must be a multiple ... lambda_sscl=0",
        ),
        row("T49", "--gradient_accumulation_steps 0", f"gradient_accumulation_steps=0: {LEAST.format(1)}"),
        row("T49", "--warmup_steps -1", "warmup_steps = -1.0 ... >= 0"),  # transformers' own words
        row(
            "T49",
            "--max_steps -1 --num_train_epochs 0",
            "num_train_epochs=0.0 with max_steps=-1: nothing would be trained",
        ),
        row("T49", "--max_steps 0 --num_train_epochs nan", "num_train_epochs=nan ... Set one of them above 0"),
    ],
)
def test_training_settings(flags, told):
    with refused(told):
        parse([*BASE, *flags.split()])


@pytest.mark.parametrize(
    "rate, error, told",
    [
        row("T49", float("nan"), ValueError, "Invalid learning rate: nan"),  # torch's own words
        row("T49", -1.0, ValueError, "Invalid learning rate: -1.0"),
        row("T49", 1e9, FloatingPointError, "loss_mntp is nan at step 1 ... Lower learning_rate"),
    ],
)
def test_learning_rates(tmp_path, rate, error, told):
    trainer = make_trainer(tmp_path, learning_rate=rate, max_steps=3)
    with refused(told, error):
        trainer.train()


# ------------------------------------------------------------------------------------------------------ malicious files


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run that was stopped after its first step."""
    train(folder := tmp_path_factory.mktemp("saved"), max_steps=1)
    return folder / "checkpoint-1"


@pytest.mark.parametrize(
    "name", [row("K61", name) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")]
)
def test_no_pickle_of_a_checkpoint_is_run_on_resuming(name, saved, tmp_path):
    checkpoint, canary = shutil.copytree(saved, tmp_path / "run" / saved.name), tmp_path / "canary"
    run = read_complete(checkpoint)["run"] | {"max_steps": 2}
    torch.save(Canary(canary), checkpoint / name)
    mark_complete(checkpoint, run)  # whoever forges the file forges its size
    ends = contextlib.nullcontext() if name == "training_args.bin" else refused("Weights only", pickle.UnpicklingError)
    with ends:  # the arguments are not read at all
        train(tmp_path / "run", max_steps=2, resume=True)
    assert not canary.exists()


@pytest.mark.parametrize(
    "settings",
    [
        row("K61", {"_attn_implementation_internal": "evil/attn"}),  # CVE-2026-4372
        row("K61", {"trust_remote_code": True, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}),  # CVE-2026-5241
        row("K61", {"auto_map": {"AutoModelForCausalLM": "../evil--evil.Model"}}),
    ],
)
def test_a_configuration_runs_no_code(settings, tmp_path, text_magnet, tokenizer):
    folder, canary = tmp_path / "checkpoint", tmp_path / "canary"
    save_checkpoint(text_magnet(), tokenizer, folder)
    for place in (folder, tmp_path / "evil"):
        place.mkdir(exist_ok=True)
        (place / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config._attn_implementation == "sdpa" and type(model) is FAMILIES["llama"]
    assert not canary.exists()


# --------------------------------------------------------------------------------------------------------- is all there?


def test_every_fault_is_tried_or_left_for_a_reason():
    assert len(FAULTS) == 64 and set(FAULTS) == TRIED | {fault for fault, _ in ELSEWHERE} | set(STOCK)


def test_tests_named_elsewhere_exist():
    for fault, test in ELSEWHERE:
        file, name = test.split("::")
        source = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{fault}: there is no {test}"


@pytest.mark.shared
def test_the_faults_are_those_of_the_list(shared):
    text = (shared / "docs" / "faults.md").read_text(encoding="utf-8").partition("## 5.")[2].partition("## 6.")[0]
    found = []
    for letter, section in re.findall(r"^\*\*[^*]*\((\w)\)\*\*(.*?)(?=^\*\*|\Z)", text, re.MULTILINE | re.DOTALL):
        found += [letter + number for number in re.findall(r"(?:^|(?<=\. ))(\d+)\. ", section, re.MULTILINE)]
    assert found == list(FAULTS)
