"""Ask a vLLM server and keep its answers: `python make_openai.py http://127.0.0.1:8000/v1`.

The server of the answers here was vLLM 0.32 on a CPU with --logprobs-mode processed_logprobs and SmolLM2-135M-Instruct.
"""

import json
import shutil
import sys
from pathlib import Path
from urllib.request import Request, urlopen

HERE = Path(__file__).parent / "openai"
PROMPT = [504, 2867, 314, 253]
SAMPLING = {"model": "smollm2", "temperature": 0.8, "seed": 1, "max_tokens": 6}


def ask(route, **fields):
    body = json.dumps({**SAMPLING, **fields}).encode()
    request = Request(f"{sys.argv[1]}/{route}", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        return {"request": json.loads(body), "response": json.load(answer)}


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    chat = [{"role": "user", "content": "Name a colour."}]
    ids = ask("completions", prompt=PROMPT, n=2, logprobs=1, return_token_ids=True)
    named = ask("completions", prompt=PROMPT, n=2, logprobs=1, return_tokens_as_token_ids=True)
    keep("completions.jsonl", [ids, named])
    keep("echo.jsonl", [ask("completions", prompt=PROMPT, logprobs=1, echo=True, return_token_ids=True)])
    keep("chat.jsonl", [ask("chat/completions", messages=chat, logprobs=True, top_logprobs=1, return_token_ids=True)])
    texts = ask("chat/completions", messages=chat, logprobs=True)
    (HERE / "texts.json").write_text(json.dumps(texts["response"], indent=2) + "\n")


def keep(name, answers):
    (HERE / name).write_text("".join(json.dumps(one) + "\n" for one in answers))


if __name__ == "__main__":
    main()
