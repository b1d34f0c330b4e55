"""Write sglang/: answers of /generate with return_logprob, as SGLang documents them; no server made these."""

import json
from pathlib import Path

HERE = Path(__file__).parent / "sglang"


def answer(name, prompt, response, version):
    return {
        "text": "...",
        "output_ids": [token for _, token in response],
        "meta_info": {
            "id": name,
            "finish_reason": {"type": "length", "length": len(response)},
            "prompt_tokens": len(prompt),
            "weight_version": version,
            "completion_tokens": len(response),
            "cached_tokens": 0,
            "e2e_latency": 0.5,
            "input_token_logprobs": [[None if i == 0 else -1.5, token, None] for i, token in enumerate(prompt)],
            "output_token_logprobs": [[log_mu, token, None] for log_mu, token in response],
        },
    }


def main():
    HERE.mkdir(exist_ok=True)
    asked = {"input_ids": [1, 2, 3], "sampling_params": {"temperature": 0.8, "n": 2}, "return_logprob": True}
    one = answer("a", [1, 2, 3], [(-0.5, 50), (-0.25, 51)], "7")
    two = answer("b", [1, 2, 3], [(-1.5, 60), (-0.125, 61), (-2.0, 62)], "default")
    lines = [{"request": asked, "response": one}, two]
    (HERE / "generate.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (HERE / "batch.json").write_text(json.dumps([one, two], indent=1) + "\n")


if __name__ == "__main__":
    main()
