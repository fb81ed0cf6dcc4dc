"""What a run costs, from its configuration: floating-point operations, and memory of the states. Free of torch."""

from ..config.run import Run
from ..models.sizes import count_parameters


def flops_per_token(run: Run) -> float:
    """Training operations a token of a resolved run: 6 a weight that multiplies (the tables of tokens and positions
    do not), and causal attention's 2 products over half of the context, three times for forward and backward."""
    m = run.model
    rows = (0 if m.tied_embeddings else m.vocab_size) + (m.max_seq_len if m.positions == "learned" else 0)
    multiplying = count_parameters(m) - rows * m.d_model
    attention = 12 * m.n_layers * m.n_heads * m.head_dim * (run.train.seq_len / 2)
    return 6 * multiplying + attention


def run_flops(run: Run) -> float:
    """Training operations of the whole run."""
    return flops_per_token(run) * run.train.steps * run.train.tokens_per_step


def state_bytes(run: Run) -> int:
    """Bytes of float32 weights, gradients and the two moments of AdamW."""
    return 16 * count_parameters(run.model)
