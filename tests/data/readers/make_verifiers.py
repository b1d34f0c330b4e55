"""Write verifiers/traces.jsonl with verifiers' own writer: `pip install verifiers==0.4.0`, then run this file."""

import random
import shutil
from pathlib import Path

from verifiers.v1.configs.agent import WireAgentConfig
from verifiers.v1.episode import EnvInfo, Episode, GroupInfo, PolicySpan, TrainRunInfo, TrainWorkInfo
from verifiers.v1.graph import MessageNode
from verifiers.v1.state import State
from verifiers.v1.task import WireTaskData
from verifiers.v1.trace import AgentInfo, ModelCall, Reward, Trace, TraceTask
from verifiers.v1.types import AssistantMessage, SamplingConfig, ToolMessage, UserMessage
from verifiers.v1.utils.trace_store import write_episode

HERE = Path(__file__).parent / "verifiers"


def sampled(rng, parent, ids, mask, *, trained=True):
    n = sum(mask)
    log_mu = [-rng.expovariate(2.0) for _ in range(n)]
    log_pi = [min(x + rng.gauss(0, 0.01), 0.0) for x in log_mu]
    return MessageNode(
        parent=parent,
        message=AssistantMessage(content="..."),
        sampled=True,
        token_ids=ids,
        mask=mask,
        logprobs=log_mu,
        advantages=[0.5] * n,
        trainer_logprobs=log_pi if trained else None,
        entropies=[0.7] * n if trained else None,
        timestamp=0.0,
    )


def given(parent, message, ids):
    return MessageNode(parent=parent, message=message, token_ids=ids, mask=[False] * len(ids), timestamp=0.0)


def trace(rng, task, i):
    """A user turn, an answer, a tool's output, an answer; in the second trace a fork after the first answer."""
    nodes = [
        given(None, UserMessage(content="question"), [1, 2, 3]),
        sampled(rng, 0, [9, 10, 11], [False, True, True]),
        given(1, ToolMessage(tool_call_id="t", content="42"), [20, 21]),
        sampled(rng, 2, [9, 12, 13, 14], [False, True, True, True]),
    ]
    if i == 1:
        nodes.append(sampled(rng, 1, [9, 30], [False, True]))
    return Trace[WireTaskData, State, WireAgentConfig](
        id=f"trace{i}",
        task=task,
        agent=AgentInfo[WireAgentConfig](config=WireAgentConfig()),
        nodes=nodes,
        calls=[ModelCall(node=1, model="org/model", sampling=SamplingConfig(temperature=0.8, top_p=1.0))],
        rewards={"correct": Reward(score=1.0, weight=0.5), "format": Reward(score=0.25)},
        stop_condition="agent_completed",
        is_completed=True,
        ok=True,
    )


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    rng = random.Random(0)
    task = TraceTask[WireTaskData](type="Question", data=WireTaskData(idx=0, prompt="question"), key="task-7")
    for i in range(2):
        episode = Episode[WireTaskData, State, WireAgentConfig](
            id=f"episode{i}",
            env=EnvInfo(id="agentic+maths", name="maths"),
            task=task,
            group=GroupInfo(id="group3"),
            run=TrainRunInfo(id="run", work=TrainWorkInfo(step=12, policy=PolicySpan(start=10, end=10 + i))),
            traces=[trace(rng, task, i)],
            ok=True,
        )
        write_episode(HERE, episode)


if __name__ == "__main__":
    main()
