"""ProbeCallback: the probes in transformers' Trainer.

    trainer = Trainer(model, args, train_dataset=data)
    trainer.add_callback(ProbeCallback(heldout_ids, every=100, path="probes.jsonl", log=trainer.log))
    trainer.train()

Notable: the trained weights are bit for bit those of a training without it. Where the Trainer computes in bfloat16 so does a
look. Only the main process looks and writes, while the others wait for it at their next exchange of gradients.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...config.run import ProbeConfig
from ...record import Row
from ..blocks import blocks
from .gradients import gradient_rows
from .lines import append_rows, forget_after
from .look import Heldout, looked, refuse_sharded

try:
    from transformers import TrainerCallback
except ImportError:
    raise ImportError("ProbeCallback is one of transformers' Trainer, which needs: pip install 'gatelab[hf]'") from None

# What goes to the log, of the whole model, and at which threshold; a log has room for a few numbers.
_LOGGED: dict[str, float | None] = {
    "first_token_mass": None,
    "sink_rate": 0.3,
    "attention_entropy": None,
    "massive_ratio": None,
    "gate_mean": None,
    "gate_grad_share": None,
}
# Texts are cut to so many tokens; ids may have any length.
_LENGTH = 512

_say = logging.getLogger(__name__).warning


class ProbeCallback(TrainerCallback):
    """Looks at held-out sequences before the first step, every so many steps, and after the last one; with each look but the
    first, the gradient norms of the step before it, which the Trainer has clipped by then.

    A resumed training takes back the rows of steps behind its checkpoint, and goes on in the same file.

    Args:
        heldout: token ids [B, T], or what the model takes by keyword, as in `look`; or texts, with their `tokenizer`.
        every: steps from look to look.
        names: of probes; None takes all that the model allows.
        path: rows are appended there as JSON lines, flushed at every look; `read_rows` reads them. `run` of a row is the
            Trainer's `run_name`, or the name of its output folder.
        log: given a few numbers of the model, named `probe/first_token_mass` and the like: `trainer.log`, which hands them
            to every integration of the Trainer, or any function of a dictionary.

    Raises:
        ValueError: texts without a tokenizer, `every` below 1, neither path nor log; when training begins, what `look`
            refuses, and a file that is there already.
    """

    def __init__(
        self,
        heldout: Heldout | Sequence[str],
        *,
        tokenizer: Callable[..., Mapping[str, Any]] | None = None,
        every: int = 100,
        names: Sequence[str] | None = None,
        config: ProbeConfig | None = None,
        path: str | Path | None = None,
        log: Callable[[dict[str, float]], object] | None = None,
    ):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r}: expected a number of steps, 1 or more")
        if path is None and log is None:
            raise ValueError("the rows would go nowhere; give path=, or log=trainer.log, or both")
        if log is not None and not callable(log):
            raise ValueError(f"log={log!r}: expected a function of a dictionary of numbers, such as trainer.log")
        self.heldout = _ids(heldout, tokenizer)
        self.every, self.names, self.config, self.log = every, names, config, log
        self.path = None if path is None else Path(path)
        self._gradients: list[Row] = []
        self._looked_at: int | None = None
        self._is_begun = False
        self._has_gradients = False
        self._has_said = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        """The look at the start, which a resumed training may have had."""
        refuse_sharded(model)  # on every process, as one that stopped alone would leave the others waiting
        self._looked_at = None
        if not state.is_world_process_zero:
            return
        if self.path is not None:
            self._take_up(state.global_step)
        if self._looked_at is None:
            self._look(args, state, control, model)
        why = _no_gradients(args, model)
        self._has_gradients = why is None
        if why is not None:
            _say("ProbeCallback gives no gradient norms: %s", why)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        """The gradients of the step that is about to be made."""
        step = state.global_step + 1
        if state.is_world_process_zero and self._has_gradients and self._is_due(step, state):
            self._gradients = gradient_rows(model, _run(args), step)

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        """The look after a step."""
        if state.is_world_process_zero and (self._is_due(state.global_step, state) or control.should_training_stop):
            self._look(args, state, control, model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        """The last look of a training that an evaluation stopped; later the weights may be those of its best step."""
        if state.is_world_process_zero and control.should_training_stop and self._looked_at != state.global_step:
            self._look(args, state, control, model)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What follows is another training."""
        self._is_begun = False

    def _is_due(self, step: int, state: Any) -> bool:
        return step % self.every == 0 or step == state.max_steps

    def _look(self, args: Any, state: Any, control: Any, model: nn.Module) -> None:
        with _precision(args, model):
            recorder = looked(model, self.heldout, self.names, config=self.config)
        rows = [*self._gradients, *recorder.rows(_run(args), state.global_step)]
        self._gradients, self._looked_at = [], state.global_step
        if self.path is not None:
            append_rows(self.path, rows)
        if self.log is not None:
            # Trainer.log takes the Trainer's own next entry for written.
            should_log = control.should_log
            self.log(_numbers(rows))
            control.should_log = should_log
        missed = getattr(recorder, "unobserved", [])
        if missed and not self._has_said:
            self._has_said = True
            _say(
                "ProbeCallback has no rows of the attention of %d modules, the first %s (%s): %s",
                len(missed), missed[0].module, missed[0].class_name, missed[0].why,
            )  # fmt: skip

    def _take_up(self, step: int) -> None:
        """The file of a resumed training, or of one that the Trainer begins again with a smaller batch; else a new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            if step == 0 and not self._is_begun:
                raise ValueError(f"{self.path} is there already; name a new file, or resume the training that wrote it")
            if step in forget_after(self.path, step):
                self._looked_at = step
        self._is_begun = True


def _ids(heldout: Heldout | Sequence[str], tokenizer: Callable[..., Mapping[str, Any]] | None) -> Heldout:
    """Texts as ids [1, T] each: without padding, none of them needs a mask."""
    texts = [heldout] if isinstance(heldout, str) else heldout
    if not (isinstance(texts, Sequence) and any(isinstance(text, str) for text in texts)):
        return heldout
    if tokenizer is None:
        raise ValueError("the held-out sequences are texts; give their tokenizer too, or token ids [B, T]")
    return [tokenizer(t, truncation=True, max_length=_LENGTH, return_tensors="pt")["input_ids"] for t in texts]


def _run(args: Any) -> str:
    return args.run_name or Path(args.output_dir).name


def _precision(args: Any, model: nn.Module) -> Any:
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return nullcontext() if dtype is None else torch.autocast(next(model.parameters()).device.type, dtype)


def _no_gradients(args: Any, model: nn.Module) -> str | None:
    if not blocks(model):
        return f"{type(model).__name__} has no blocks that are known"
    if args.deepspeed:
        return "DeepSpeed keeps the gradients to itself"
    if args.fp16 and not args.max_grad_norm:
        return "in float16 without clipping, they are still scaled when they can be read; set max_grad_norm"
    return None


def _numbers(rows: list[Row]) -> dict[str, float]:
    """What goes to the log; sequences of several lengths are averaged."""
    found: dict[str, list[float]] = {}
    for row in rows:
        is_models = row.layer is None and row.head is None and row.domain is None
        if is_models and row.metric in _LOGGED and row.threshold == _LOGGED[row.metric]:
            name = "/".join(part for part in ("probe", row.stack, row.metric, row.site) if part is not None)
            found.setdefault(name, []).append(row.value)
    return {name: sum(values) / len(values) for name, values in found.items()}
