"""What the optimizers keep, and what they need during a step, in scalars."""

from trainyard.config import RunConfig


def optimizer_states(config: RunConfig, held: int, matrices: int) -> int:
    """Scalars that the optimizer keeps for the parameters held."""
    optimizer = config.trainer.optimizer
    momentum = bool(optimizer.parameters().get("momentum"))
    match optimizer.name:
        case "gd" | "sgd":
            return held * momentum
        case "adagrad":
            return held
        case "rmsprop":
            return held * (1 + momentum)
        case "muon":
            return matrices + 2 * (held - matrices)
        case _:
            return 2 * held


def optimizer_temporaries(config: RunConfig, held: int, largest: int) -> int:
    """Scalars of intermediate results: torch's foreach steps make some for all parameters at once, fused ones none,
    and muon makes one matrix orthogonal after the other.
    """
    optimizer = config.trainer.optimizer
    decays = bool(optimizer.parameters()["weightDecay"])
    match optimizer.name:
        case "gd" | "sgd":
            return held * decays
        case "adagrad":
            return 2 * held
        case "rmsprop":
            return held * (1 + decays)
        case "muon":
            return 4 * largest
        case _:
            return 0
