"""Where the bias of token-level estimators comes from: states, returns, truncation."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from reweigh.lab.advantages import Advantage
from reweigh.lab.exact import exact
from reweigh.lab.world import World
from reweigh.named import prefix_is, token_is, token_tis


@dataclass(frozen=True, eq=False)
class TokenBias:
    """The bias of token IS with the reward, in parts that add up to it.

    The first token of a sequence has no state mismatch and still a bias: its returns are those of mu.

    Attributes:
        total: `[params]`.
        states: what is left with the advantage of pi: states are those of mu.
        returns: what is left with prefix ratios and the advantage of mu: returns are those of mu.
        interaction: the rest.
    """

    total: Float[Tensor, " params"]
    states: Float[Tensor, " params"]
    returns: Float[Tensor, " params"]

    @property
    def interaction(self) -> Float[Tensor, " params"]:
        """`total - states - returns`."""
        return self.total - self.states - self.returns


@dataclass(frozen=True, eq=False)
class TruncatedBias:
    """The bias of token TIS with the reward: what the cap adds to what token IS has ("bias on bias").

    The two may point in opposite directions, so that the truncated estimator is the less biased one.

    Attributes:
        total: `[params]`.
        mismatch: the bias of token IS.
    """

    total: Float[Tensor, " params"]
    mismatch: Float[Tensor, " params"]

    @property
    def truncation(self) -> Float[Tensor, " params"]:
        """`E[token TIS] - E[token IS]`."""
        return self.total - self.mismatch


def token_bias(world: World) -> TokenBias:
    """Split the bias of token IS into its state half and its return half.

    Example:
        >>> from reweigh.lab import random_world, token_bias
        >>> parts = token_bias(random_world(vocab=2, length=4))
        >>> print([f"{float(x.norm()):.3f}" for x in (parts.total, parts.states, parts.returns, parts.interaction)])
        ['0.093', '0.063', '0.061', '0.009']
    """
    return TokenBias(
        total=exact(world, token_is()).bias,
        states=exact(world, token_is(), Advantage("pi")).bias,
        returns=exact(world, prefix_is(), Advantage("mu")).bias,
    )


def truncated_bias(world: World, cap: float) -> TruncatedBias:
    """Split the bias of token TIS at this cap.

    Args:
        world: small enough to enumerate.
        cap: ratio pi/mu of a token.
    """
    return TruncatedBias(total=exact(world, token_tis(cap)).bias, mismatch=exact(world, token_is()).bias)
