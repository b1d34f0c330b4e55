"""Write llama_cpp/ and tgi/, after their documentation: no server of theirs is asked."""

import json
import shutil
from pathlib import Path

HERE = Path(__file__).parent


def llama(i, pairs):
    settings = {"seed": 1, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0}
    settings |= {"samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"], "n_probs": 1}
    settings |= {"post_sampling_probs": False, "stream": False}
    entries = [
        {
            "id": t,
            "token": " a",
            "bytes": [32, 97],
            "logprob": x,
            "top_logprobs": [{"id": t, "token": " a", "logprob": x}],
        }
        for t, x in pairs
    ]
    return {
        "index": i,
        "content": " a" * len(pairs),
        "tokens": [t for t, _ in pairs],
        "id_slot": 0,
        "stop": True,
        "model": "m.gguf",
        "tokens_predicted": len(pairs),
        "tokens_evaluated": 3,
        "generation_settings": settings,
        "prompt": "Why?",
        "truncated": False,
        "stop_type": "limit",
        "stopping_word": "",
        "completion_probabilities": entries,
    }


def tgi(pairs, prefill=()):
    tokens = [{"id": t, "text": " a", "logprob": x, "special": False} for t, x in pairs]
    details = {"finish_reason": "length", "generated_tokens": len(tokens), "seed": 1, "tokens": tokens}
    details["prefill"] = [{"id": t, "text": "a", "logprob": None if i == 0 else -2.0} for i, t in enumerate(prefill)]
    return {"generated_text": " a" * len(tokens), "details": details}


def keep(folder, name, records):
    shutil.rmtree(HERE / folder, ignore_errors=True)
    (HERE / folder).mkdir()
    (HERE / folder / name).write_text("".join(json.dumps(one) + "\n" for one in records))


def main():
    request = {"prompt": [1, 2, 3], "n_predict": 2, "n_probs": 1, "return_tokens": True}
    answers = [llama(i, [(50, -0.5 - i), (51, -0.25)]) for i in range(3)]
    keep("llama_cpp", "completion.jsonl", [answers[0], answers[1], {"request": request, "response": answers[2]}])
    first = tgi([(50, -0.5), (51, -1.25)], [1, 2, 3])
    other = tgi([(60, -0.75)])
    first["details"]["best_of_sequences"] = [{**other["details"], "generated_text": " a"}]
    parameters = {"temperature": 0.8, "details": True, "decoder_input_details": True}
    third = {"request": {"inputs": "Why?", "parameters": parameters}, "response": tgi([(52, -0.5)], [1, 2, 3])}
    keep("tgi", "generate.jsonl", [{"request": {"inputs": "a", "parameters": parameters}, "response": first}, third])


if __name__ == "__main__":
    main()
