"""Layers spread over processes: micro-batches pass through stages by one of torch's schedules (V3 3.2.1)."""

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleDualPipeV, ScheduleZBVZeroBubble
from torch.distributed.pipelining.schedules import (
    OVERLAP_F_B,
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    _Action,  # pyright: ignore[reportPrivateUsage]
    _PipelineContext,  # pyright: ignore[reportPrivateUsage]
    _PipelineScheduleRuntime,  # pyright: ignore[reportPrivateUsage]
)

from fathom.kernels.owed import Owed
from fathom.parallel.baton import Baton
from fathom.parallel.mesh import Axis
from fathom.plan.measured import Note
from fathom.plan.schedule import check_micro_batches

Schedule = PipelineScheduleSingle | PipelineScheduleMulti


class Piece(PipelineStage):
    """A stage of torch's that notes what it computes, if someone asks, and can put gradients of weights off."""

    notes: list[Note] | None = None
    sent: Counter[str]  # of the pipeline's axis

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        return self._booked("states", super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        return self._booked("states gradient", super().get_bwd_send_ops(bwd_chunk_id))

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **options: Any) -> Any:
        with self._noting("F", fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **options)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Tensor | None = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        with self._noting("BW" if full_backward else "B", bwd_chunk_id):
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        with self._noting("W", bwd_chunk_id):
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)

    def _booked(self, kind: str, ops: list[dist.P2POp]) -> list[dist.P2POp]:
        self.sent[kind] += sum(op.tensor.nbytes for op in ops)
        return ops

    @contextmanager
    def _noting(self, kind: Literal["F", "B", "W", "BW"], micro_batch: int) -> Generator[None]:
        if self.notes is None:
            yield
            return
        start = _now(self.device)
        yield
        self.notes.append(Note(kind, self.stage_index, micro_batch, start, _now(self.device)))


def build_schedule(
    name: str,
    stages: int,
    modules: Mapping[int, nn.Module],
    owed: Mapping[int, Owed],
    micro_batches: int,
    states: Tensor,
    axis: Axis,
    device: torch.device,
    baton: Baton,
) -> tuple[Schedule, list[Piece]]:
    """The schedule of this process, and its pieces: `modules` by the number of their stage, of `stages` in all.

    A module is called with what the stage before returned, shaped as `states` (on the meta device), and the keyword
    `micro_batch`, the number as a tensor; the last one returns the loss, a part of the sum that is minimised. Where a
    schedule puts gradients of weights off, those that the backward pass left in `owed` of the stage are paid later.
    Raises ValueError for fewer micro-batches than the schedule can work with.
    """
    check_micro_batches(name, axis.size, micro_batches)
    number, loss = torch.zeros(1, dtype=torch.int64, device="meta"), torch.zeros((), device="meta")
    pieces = [
        Piece(
            module,
            index,
            stages,
            device,
            input_args=number if index == 0 else states,
            output_args=loss if index == stages - 1 else states,
            group=axis.group,
            dw_builder=None if name == "1f1b" else _pay_later(owed[index]),
        )
        for index, module in sorted(modules.items())
    ]
    for piece in pieces:
        piece.sent = axis.sent
    match name:
        case "1f1b":
            schedule: Schedule = Schedule1F1B(pieces[0], micro_batches, _as_it_is, scale_grads=False)
        case "zbv":
            schedule = ScheduleZBVZeroBubble(list(pieces), micro_batches, _as_it_is, scale_grads=False)
        case _:
            schedule = ScheduleDualPipeV(list(pieces), micro_batches, _as_it_is, scale_grads=False)
            _interleave(schedule, baton)
    return schedule, pieces


def run_schedule(schedule: Schedule, pieces: Sequence[Piece], micro_batches: int) -> None:
    """Pass all micro-batches forward and back; gradients add to those that the weights have."""
    numbers = torch.arange(micro_batches)
    first = (numbers,) if pieces[0].is_first else ()
    schedule.step(*first, target=numbers, return_outputs=False, micro_batch=numbers)


def run_forward(
    modules: Mapping[int, nn.Module],
    owners: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    axis: Axis,
    device: torch.device,
) -> None:
    """Pass micro-batches forward only, of states of these shapes; `owners` are the processes of all stages."""
    passed: dict[int, Tensor] = {}  # by micro-batch, from a stage to the next one on the same process
    sent: list[tuple[dist.Work | None, Tensor]] = []
    for index, module in sorted(modules.items()):
        before = None if index == 0 else owners[index - 1]
        behind = None if index == len(owners) - 1 else owners[index + 1]
        for number, shape in enumerate(shapes):
            if before not in (None, axis.rank):
                passed[number] = torch.empty(shape, device=device)
                dist.recv(passed[number], group=axis.group, group_src=before)
            received = () if before is None else (passed.pop(number),)
            out = module(*received, micro_batch=torch.tensor([number]))
            if behind == axis.rank:
                passed[number] = out
            elif behind is not None:
                sent.append((dist.isend(out, group=axis.group, group_dst=behind), out))
                axis.sent["states"] += out.nbytes
    for work, _ in sent:
        if work is not None:
            work.wait()


def exchange_ends(tensors: Sequence[Tensor], axis: Axis) -> None:
    """Add to every tensor that of the other end of the pipeline: the first process's and the last one's get equal.

    Call it on these two. Both add in one order, so that what they get is the same to the last bit.
    """
    peer = axis.size - 1 - axis.rank
    others = [torch.empty_like(tensor) for tensor in tensors]
    sends = [dist.P2POp(dist.isend, tensor, group=axis.group, group_peer=peer) for tensor in tensors]
    receives = [dist.P2POp(dist.irecv, other, group=axis.group, group_peer=peer) for other in others]
    for work in dist.batch_isend_irecv(sends + receives):
        work.wait()
    axis.sent["gradients"] += sum(tensor.nbytes for tensor in tensors)
    for tensor, other in zip(tensors, others, strict=True):
        torch.add(*((tensor, other) if axis.rank < peer else (other, tensor)), out=tensor)


def _as_it_is(output: Tensor, target: Tensor) -> Tensor:
    """The last stage returns its loss: what there is to compare with lies beside it."""
    return output


def _pay_later(owed: Owed) -> Callable[[], Callable[[], None]]:
    """torch asks behind each backward pass what remains to be done for the gradients of the weights."""

    def take() -> Callable[[], None]:
        bills = owed.copy()
        owed.clear()

        def pay() -> None:
            while bills:
                bills.pop(0)()  # a bill holds activations: let go of each at once

        return pay

    return take


def _interleave(schedule: ScheduleDualPipeV, baton: Baton) -> None:
    """Let paired passes, one's forward and another's backward, take turns at every pause (V3 3.2.1).

    torch's own way runs the two one after the other. The book-keeping around each pass is what its runtime does.
    """

    def perform(action: _Action, ctx: _PipelineContext) -> None:
        assert action.sub_actions is not None
        forward, backward = action.sub_actions
        _await_messages(schedule.fwd_recv_ops, forward)
        _await_messages(schedule.bwd_recv_ops, backward)
        baton.together(lambda: _forward(schedule, forward, ctx), lambda: _backward(schedule, backward))

    schedule.register_custom_function(OVERLAP_F_B, perform)


def _await_messages(messages: dict[tuple[int, int], list[dist.Work]], action: _Action) -> None:
    assert action.microbatch_index is not None
    for work in messages.pop((action.stage_index, action.microbatch_index), []):
        work.wait()


def _forward(schedule: _PipelineScheduleRuntime, action: _Action, context: _PipelineContext) -> None:
    pieces = {piece.stage_index: piece for piece in schedule._stages}  # pyright: ignore[reportPrivateUsage]
    piece, number = pieces[action.stage_index], action.microbatch_index
    assert number is not None and context.arg_mbs is not None and context.kwarg_mbs is not None
    output = piece.forward_one_chunk(
        number, context.arg_mbs[number], context.kwarg_mbs[number], save_forward_output=False
    )
    schedule._maybe_compute_loss(piece, output, context.target_mbs, number)  # pyright: ignore[reportPrivateUsage]
    if action.stage_index + 1 in pieces:
        pieces[action.stage_index + 1].set_local_fwd_input(output, number)


def _backward(schedule: _PipelineScheduleRuntime, action: _Action) -> None:
    pieces = {piece.stage_index: piece for piece in schedule._stages}  # pyright: ignore[reportPrivateUsage]
    piece, number = pieces[action.stage_index], action.microbatch_index
    assert number is not None
    loss = schedule._maybe_get_loss(piece, number)  # pyright: ignore[reportPrivateUsage]
    schedule.backward_counter[action.stage_index] += 1
    piece.backward_one_chunk(number, loss=loss, full_backward=True)
    if action.stage_index - 1 in pieces:
        pieces[action.stage_index - 1].set_local_bwd_input(piece.get_local_bwd_output(number), number)


def _now(device: torch.device) -> float:
    """Seconds of the wall clock, the only one that hosts have in common."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.time()
