"""Canary prompts on a tiny model: faults that are committed are named, honest pushes are not, small steps are told."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from reweigh.__main__ import main
from reweigh.probe import canary
from reweigh.probe.canary import check, load_canary, record, state_of
from reweigh.probe.engine import ProbeError
from reweigh.probe.models import round_rows
from reweigh.probe.scorer import Response, Scorer

SIZE = 64


def tiny_model(seed: int = 0, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.15,
    )
    model = LlamaForCausalLM(config).eval()
    model.requires_grad_(False)
    return model


def moved(state: dict, size: float, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {k: v + size * torch.randn(v.shape, generator=generator) for k, v in state.items()}


def adapter(state: dict, seed: int) -> dict:
    """The weights without an adapter of rank 2 on the queries and values."""
    generator = torch.Generator().manual_seed(seed)
    base = dict(state)
    for name, value in state.items():
        if "q_proj" in name or "v_proj" in name:
            a = torch.randn(value.shape[0], 2, generator=generator)
            base[name] = value - 0.05 * a @ torch.randn(2, value.shape[1], generator=generator)
    return base


@pytest.fixture(scope="module")
def push():
    """A model after a push, the weights before and without the adapter, its canary, and its tokens."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, SIZE, (24, 18), generator=generator).tolist()
    responses = [Response(row[:6], tuple(row[6:])) for row in ids]
    old = state_of(model)
    new = moved(old, 0.01, seed=1)
    base = adapter(old, 3)
    for name, value in model.named_parameters():
        value.data = new[name]
    return model, old, new, base, record(model, responses, name="tiny", previous=old, base=base), responses


def answered(push, state, noise=0.01, seed=0, tied_to=None):
    """An engine with these weights, whose logits have noise: its log-probs move by about 1 - p times as much."""
    model, _, _, _, _, responses = push
    params = dict(model.named_parameters())
    with canary._changed(params, state):
        if tied_to is None:
            scores = Scorer(model, "float32").score(responses)
        else:
            with canary._untied(model.get_output_embeddings(), tied_to):
                scores = Scorer(model, "float32").score(responses)
    generator = np.random.default_rng(seed)
    return [[x + noise * (1 - np.exp(x)) * generator.normal() for x in one.log_pi] for one in scores]


def test_it_leaves_the_model_as_it_was(push):
    model, _, new, _, kept, responses = push
    assert all(torch.equal(value, new[name]) for name, value in model.named_parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert [one.log_pi for one in Scorer(model, "float32").score(responses)] == kept.log_pi


def test_faults_are_named(push):
    _, old, new, base, kept, _ = push

    def part(word):
        return new | {k: v for k, v in old.items() if word in k}

    linear = [k for k in new if "_proj" in k]
    cases = {
        "nothing_pushed": old,
        "part_of_fused": part("gate_proj"),
        "layers_left_out": part("layers.1."),
        "lora_not_applied": base,
        "lora_twice": {k: 2 * v - base[k] for k, v in new.items()},
        "precision": new | {k: round_rows(new[k]) for k in linear},
    }
    for kind, state in cases.items():
        # The one that is far subtler than a step needs an engine of little noise.
        found = check(kept, answered(push, state, noise=5e-4 if kind == "precision" else 0.01))
        assert found.code == 1, (kind, found)
        assert found.likely[0].kind == kind, found
        assert canary.TITLES[kind] in found.sentence
    tied = check(kept, answered(push, new, tied_to=old["model.embed_tokens.weight"]))
    assert (tied.code, tied.likely[0].kind, tied.likely[0].what) == (1, "tied_head", "head")


def test_a_stale_cache_is_named(push):
    model, old, _, _, kept, responses = push
    values = canary._with_stale_cache(model, dict(model.named_parameters()), old, responses)
    generator = np.random.default_rng(1)
    found = check(kept, [[x + 0.01 * generator.normal() for x in row] for row in values])
    assert (found.code, found.likely[0].kind) == (1, "stale_cache")
    fresh = canary._with_stale_cache(model, dict(model.named_parameters()), state_of(model), responses)
    assert np.abs(np.array(fresh) - np.array(kept.log_pi)).max() < 1e-4  # with weights of now it is no other answer


def test_honest_pushes_raise_no_alarm(push):
    _, _, new, _, kept, _ = push
    codes = [check(kept, answered(push, new, noise=0.02, seed=seed)).code for seed in range(40)]
    assert codes == [0] * 40


def test_a_step_that_noise_hides_cannot_be_told(push):
    model, _, new, _, _, responses = push
    kept = record(model, responses, name="tiny", previous=moved(new, 1e-5, seed=9))
    found = check(kept, answered(push, new, noise=0.02))
    assert found.code == 2
    assert found.sentence.startswith("cannot tell whether the weights were pushed")
    assert found.step is not None
    assert found.step < found.noise


def test_another_fault_is_of_no_known_kind(push):
    _, _, new, _, kept, _ = push
    found = check(kept, answered(push, new, noise=2.0))
    assert found.code == 1
    assert "of no kind that is known" in found.sentence


def test_without_the_weights_before_it_says_so(push):
    model, _, new, _, _, responses = push
    kept = record(model, responses, name="tiny")
    assert {one.kind for one in kept.faults} == {"precision"}
    found = check(kept, answered(push, new))
    assert found.code == 0
    assert "as far as can be told without the weights before" in found.sentence


def test_a_model_whose_head_is_its_own_has_no_tied_head():
    model = tiny_model(tied=False)
    old = moved(state_of(model), 0.01, 2)
    kept = record(model, [Response([1, 2], (3, 4, 5))], name="tiny", previous=old)
    assert "tied_head" not in {one.kind for one in kept.faults}


def test_wrong_input(push, tmp_path):
    model, old, _, _, kept, responses = push
    with pytest.raises(ProbeError, match=r"previous has other tensors than the model\nhint"):
        record(model, responses, name="tiny", previous={"a": old["model.norm.weight"]})
    with pytest.raises(ProbeError, match=r"the canary has .*\nhint: one log-prob for each"):
        check(kept, kept.log_pi[1:])
    with pytest.raises(ProbeError, match="not finite"):
        check(kept, [[float("-inf")] * len(row) for row in kept.log_pi])
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ProbeError, match=r"a\.json is no canary: .*\nhint"):
        load_canary(tmp_path / "a.json")


def test_a_file_holds_all_of_it_and_the_command_has_its_exit_codes(push, tmp_path, capsys):
    _, old, new, _, kept, _ = push
    path, answer = tmp_path / "c.json", tmp_path / "a.json"
    kept.save(path)
    assert replace(load_canary(path)).faults == kept.faults
    for state, code in ((new, 0), (old, 1)):
        answer.write_text(json.dumps(answered(push, state)))
        assert main(["canary", "check", str(path), "--log-probs", str(answer)]) == code
    assert "nothing was pushed" in capsys.readouterr().out
    assert main(["canary", "check", str(path)]) == 2
    assert "--model: say which weights the engine loads" in capsys.readouterr().err
