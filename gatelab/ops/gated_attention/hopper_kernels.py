"""FlashAttention-4's kernels for Hopper: its forward pass with the gate where the output leaves, and its backward main loop.

Notable: the gate multiplies the normalised float32 accumulator, so that the ungated output is never in memory. Its logits
come while the keys are read: of a headwise gate one number a row, of an elementwise one the warp's 16 rows through shared
memory. Importing this file needs what the extra `hopper` installs; nothing else in this folder does. It builds on what
`flash-attn-4` keeps to itself, so that the extra names one version of it.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import cutlass
import torch
from cutlass import Float32, Int32, const_expr, cute
from cutlass.cute.nvgpu import cpasync, warp
from cutlass.memory import SmemAllocator
from cutlass.utils import LayoutEnum
from flash_attn.cute.flash_bwd_sm90 import FlashAttentionBackwardSm90
from flash_attn.cute.interface import (
    BwdConfig,
    _compile_bwd_postprocess,
    _tile_size_bwd_sm90,
    _tile_size_fwd_sm90,
)
from flash_attn.cute.utils import AuxData
from quack.compile_utils import make_fake_stream, make_fake_tensor
from quack.layout_utils import reshape_acc_to_mn
from quack.sm90_utils import make_smem_layout
from torch import Tensor

from .hopper_documents import DocumentBackward, DocumentForward
from .hopper_prepare import Prepared

_ELEMENTS = {torch.bfloat16: cutlass.BFloat16, torch.float16: cutlass.Float16, torch.float32: Float32}
_LOG2_E = math.log2(math.e)
_SHARED_BYTES = 227 * 1024
_ROWS_OF_A_WARP = 16


class GatedForward(DocumentForward):
    """o ⊙ σ(gate) in the place of o. `aux_data.tensors` holds the logits: [B, T, H] where headwise, else [B, T, H, K].

    One program computes one tile of queries, as FlashAttention-4's schedulers for Hopper do without fixed-length loops.
    `is_staged`: elementwise logits of the inputs' type, in rows that begin at 16 bytes, come through shared memory; others
    are read where they are needed.
    """

    is_elementwise = False
    is_staged = False

    @cute.jit
    def mma(
        self, tiled_mma_qk, tiled_mma_pv, mO, mLSE, sQ, sK, sVt, sP, sO, learnable_sink, pipeline_k, pipeline_v,
        pipeline_q, gmem_tiled_copy_O, tma_atom_O, tidx, softmax_scale_log2, softmax_scale, block_info, SeqlenInfoCls,
        AttentionMaskCls, TileSchedulerCls, blocksparse_tensors, aux_data, fastdiv_mods,
    ):  # fmt: skip
        m_block, head, batch, _ = TileSchedulerCls().initial_work_tile_info().tile_idx
        n_rows = SeqlenInfoCls(batch).seqlen_q - m_block * self.tile_m
        logits = aux_data.tensors[0]
        if const_expr(self.is_elementwise):
            gate_TK = logits[batch, None, head, None]
            tile_MK = cute.local_tile(gate_TK, (self.tile_m, self.tile_hdimv), (m_block, 0))
            self.gate = self.staged(tile_MK, n_rows, tidx) if const_expr(self.is_staged) else tile_MK
        else:
            gate_T = logits[batch, None, head]
            self.gate = self.row_logits(cute.local_tile(gate_T, (self.tile_m,), (m_block,)), n_rows, tiled_mma_pv, tidx)
        DocumentForward.mma(
            self, tiled_mma_qk, tiled_mma_pv, mO, mLSE, sQ, sK, sVt, sP, sO, learnable_sink, pipeline_k, pipeline_v,
            pipeline_q, gmem_tiled_copy_O, tma_atom_O, tidx, softmax_scale_log2, softmax_scale, block_info,
            SeqlenInfoCls, AttentionMaskCls, TileSchedulerCls, blocksparse_tensors, aux_data, fastdiv_mods,
        )  # fmt: skip

    @cute.jit
    def epilogue(
        self, acc_O, lse, mO, mLSE, sO, seqlen, gmem_tiled_copy_O, tma_atom_O, tiled_mma, tidx, m_block, head_idx,
        batch_idx,
    ):  # fmt: skip
        acc_MK = reshape_acc_to_mn(acc_O)
        if const_expr(not self.is_elementwise):
            for r in cutlass.range(cute.size(acc_MK, mode=[0]), unroll_full=True):
                acc_MK[r, None].store(acc_MK[r, None].load() * _sigmoid(self.gate[r]))
        else:
            if const_expr(self.is_staged):
                gate = cute.make_fragment_like(acc_O, self.dtype)
                cute.arch.cp_async_wait_group(0)
                cute.arch.sync_warp()
                atom = cute.make_copy_atom(warp.LdMatrix8x8x16bOp(transpose=False, num_matrices=4), self.dtype)
                lanes = cute.make_tiled_copy_C(atom, tiled_mma).get_slice(tidx)
                cute.copy(atom, lanes.partition_S(self.gate), lanes.retile(gate))
            else:
                gate = self.read_in_place(acc_O, seqlen.seqlen_q - m_block * self.tile_m, tiled_mma, tidx)
            for i in cutlass.range(cute.size(acc_O), unroll_full=True):
                acc_O[i] = acc_O[i] * _sigmoid(Float32(gate[i]))
        DocumentForward.epilogue(
            self, acc_O, lse, mO, mLSE, sO, seqlen, gmem_tiled_copy_O, tma_atom_O, tiled_mma, tidx, m_block, head_idx,
            batch_idx,
        )  # fmt: skip

    @cute.jit
    def row_logits(self, gate_M: cute.Tensor, n_rows: Int32, tiled_mma: cute.TiledMma, tidx: Int32):
        """Of each row of the thread's accumulator its logit, 0 past the last row."""
        places = reshape_acc_to_mn(
            tiled_mma.get_slice(tidx).partition_C(cute.make_identity_tensor((self.tile_m, self.tile_hdimv)))
        )
        logits = cute.make_rmem_tensor(cute.size(places, mode=[0]), Float32)
        logits.fill(0.0)
        for r in cutlass.range(cute.size(logits), unroll_full=True):
            row = places[r, 0][0]
            if row < n_rows:
                logits[r] = Float32(gate_M[row])
        return logits

    @cute.jit
    def staged(self, gate_MK: cute.Tensor, n_rows: Int32, tidx: Int32):
        """Starts each warp's copies, 16 bytes a lane, of the rows that its accumulators hold; returns where they go, a
        tile with the output's layout."""
        layout = make_smem_layout(self.dtype, LayoutEnum.ROW_MAJOR, (self.tile_m, self.tile_hdimv))
        shared_MK = SmemAllocator().allocate_tensor(self.dtype, layout.outer, byte_alignment=1024, swizzle=layout.inner)
        n_chunks = 8 if self.tile_hdimv % 64 == 0 else 4
        atom = cute.make_copy_atom(
            cpasync.CopyG2SOp(cache_mode=cpasync.LoadCacheMode.GLOBAL), self.dtype, num_bits_per_copy=128
        )
        lanes = cute.make_tiled_copy_tv(
            atom,
            cute.make_ordered_layout((cute.arch.WARP_SIZE // n_chunks, n_chunks), order=(1, 0)),
            cute.make_layout((1, 128 // self.dtype.width)),
        ).get_slice(tidx % cute.arch.WARP_SIZE)
        shape, w = (_ROWS_OF_A_WARP, self.tile_hdimv), cute.arch.make_warp_uniform(tidx // cute.arch.WARP_SIZE)
        source = lanes.partition_S(cute.local_tile(gate_MK, shape, (w, 0)))
        target = lanes.partition_D(cute.local_tile(shared_MK, shape, (w, 0)))
        places = lanes.partition_S(cute.make_identity_tensor(shape))
        for r in cutlass.range_constexpr(cute.size(target, mode=[1])):
            if places[0, r, 0][0] + w * _ROWS_OF_A_WARP < n_rows:
                cute.copy(atom, source[None, r, None], target[None, r, None])
        cute.arch.cp_async_commit_group()
        return shared_MK

    @cute.jit
    def read_in_place(self, acc_O: cute.Tensor, n_rows: Int32, tiled_mma: cute.TiledMma, tidx: Int32):
        """The logits of the thread's accumulators, two side by side a load."""
        lanes = tiled_mma.get_slice(tidx)
        source = lanes.partition_C(self.gate)
        gate = cute.make_fragment_like(acc_O, self.gate.element_type)
        gate.fill(0.0)
        source_MK, gate_MK = reshape_acc_to_mn(source), reshape_acc_to_mn(gate)
        places = reshape_acc_to_mn(lanes.partition_C(cute.make_identity_tensor((self.tile_m, self.tile_hdimv))))
        for r in cutlass.range_constexpr(cute.size(gate_MK, mode=[0])):
            if places[r, 0][0] < n_rows:
                cute.autovec_copy(source_MK[r, None], gate_MK[r, None])
        return gate


@cute.jit
def _sigmoid(x: Float32) -> Float32:
    return cute.arch.rcp_approx(1.0 + cute.math.exp2(x * -_LOG2_E, fastmath=True))


def forward(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, logits_BTHW: Tensor | None, *, is_causal: bool, window: int | None,
    spans_4BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(q kᵀ/√K) v ⊙ σ(logits), contiguous [B, T, H, K] in q's type, and the log-sum-exp [B, H, T] in float32.

    Args:
        q_BTHK, k_BSGK, v_BSGK: bfloat16 or float16, rows that begin at 16 bytes.
        logits_BTHW: W = 1 of a headwise gate; W = K of an elementwise one, rows as those of q; None: without a gate.
        window: as `gated_attention` takes it.
        spans_4BT: what tokens see, as `documents.spans` gives it for documents, causality and window; with as many queries
            as keys.
    """
    (B, T, H, K), G = q_BTHK.shape, k_BSGK.shape[2]
    z_BTHK = torch.empty(B, T, H, K, dtype=q_BTHK.dtype, device=q_BTHK.device)
    lse_BHT = torch.empty(B, H, T, dtype=torch.float32, device=q_BTHK.device)
    reach = _reach(q_BTHK, k_BSGK, is_causal, window, spans_4BT is not None)
    of_queries = None if spans_4BT is None else spans_4BT[:2]
    gate, aux = None, None
    if logits_BTHW is not None:
        is_known = logits_BTHW.dtype in _ELEMENTS
        logits = logits_BTHW if is_known else logits_BTHW.float()
        gate = Gate(logits.dtype, is_elementwise=logits.shape[3] > 1, is_staged=logits.dtype == q_BTHK.dtype)
        aux = [logits if gate.is_elementwise else logits.squeeze(3)]
    compiled = _forward(q_BTHK.dtype, K, H // G, reach.kind, gate)
    with torch.cuda.device_of(q_BTHK):
        compiled(
            q_BTHK, k_BSGK, v_BSGK, z_BTHK, lse_BHT, K**-0.5, None, None, None, of_queries, None, reach.left,
            reach.right, None, None, AuxData(aux, None), None, None,
        )  # fmt: skip
    return z_BTHK, lse_BHT


def queries_of_a_tile(
    q_BTHK: Tensor, k_BSGK: Tensor, *, is_causal: bool, window: int | None, has_documents: bool = False
) -> int:
    """How many queries the backward main loop takes at once."""
    return _backward_tiles(q_BTHK.shape[3], _reach(q_BTHK, k_BSGK, is_causal, window, has_documents).kind).m_block_size


def backward(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, prepared: Prepared, *, is_causal: bool, window: int | None,
    spans_4BT: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, contiguous in the inputs' shapes and type; adds to `prepared.dq_BHN`.

    Args:
        q_BTHK, k_BSGK, v_BSGK, window, spans_4BT: as `forward` takes them.
        prepared: for tiles of `queries_of_a_tile`.
    """
    (B, _, H, K), (S, G) = q_BTHK.shape, k_BSGK.shape[1:3]
    reach, dtype = _reach(q_BTHK, k_BSGK, is_causal, window, spans_4BT is not None), q_BTHK.dtype
    of_keys = None if spans_4BT is None else spans_4BT[2:]
    tiles = _backward_tiles(K, reach.kind)
    dq, dk, dv = (torch.empty(t.shape, dtype=dtype, device=t.device) for t in (q_BTHK, k_BSGK, v_BSGK))
    sums = [dk, dv]
    if H > G:
        n_rows = -(-S // tiles.n_block_size) * tiles.n_block_size
        sums = [torch.zeros(B, G, n_rows * K, dtype=torch.float32, device=q_BTHK.device) for _ in range(2)]
    # Where one warp group alone multiplies for dq, it alone converts it.
    threads = tiles.num_wg * 128
    dq_threads = 128 if tiles.dQ_single_wg else threads
    with torch.cuda.device_of(q_BTHK):
        _backward(dtype, K, H // G, reach.kind)(
            q_BTHK, k_BSGK, v_BSGK, prepared.dy_BTHK, prepared.lse2_BHP, prepared.delta_BHP, prepared.dq_BHN, *sums,
            K**-0.5, None, None, of_keys, None, reach.left, reach.right, None, None, None, AuxData(None, None), None,
            None,
        )  # fmt: skip
        convert = _converting(dtype, K, tiles.m_block_size, dq_threads, tiles.AtomLayoutMdQ, tiles.dQ_swapAB)
        convert(prepared.dq_BHN, dq, K**-0.5, None, None, None, None)
        if H > G:
            convert = _converting(dtype, K, tiles.n_block_size, threads, tiles.AtomLayoutNdKV, tiles.dKV_swapAB)
            convert(sums[0], dk, K**-0.5, None, None, None, None)
            convert(sums[1], dv, 1.0, None, None, None, None)
    return dq, dk, dv


class Gate(NamedTuple):
    """What of a gate's logits a kernel is compiled for; see `GatedForward`."""

    dtype: torch.dtype
    is_elementwise: bool
    is_staged: bool


class Kind(NamedTuple):
    """What of the visible keys a kernel is compiled for: `causal` or not, on which sides a window ends, and whether spans
    come that say all of it."""

    is_causal: bool
    is_left: bool
    is_right: bool
    has_documents: bool = False

    @property
    def is_local(self) -> bool:
        return self.is_left or self.is_right


class Reach(NamedTuple):
    """How many keys before and after its own a query sees, None without end."""

    kind: Kind
    left: int | None
    right: int | None


def _reach(q_BTHK: Tensor, k_BSGK: Tensor, is_causal: bool, window: int | None, has_documents: bool) -> Reach:
    """A window that holds all keys of all queries is none; that of documents is in their spans."""
    if has_documents:
        return Reach(Kind(False, True, True, True), 0, 0)
    if window is None or window >= max(q_BTHK.shape[1], k_BSGK.shape[1]):
        return Reach(Kind(is_causal, False, False), None, None)
    return Reach(Kind(False, True, True), window - 1, 0 if is_causal else window - 1)


@functools.cache
def _forward(dtype: torch.dtype, K: int, R: int, kind: Kind, gate: Gate | None) -> Callable[..., None]:
    """The forward pass with R query heads a key head, for all lengths and strides."""
    tiles = _tile_size_fwd_sm90(K, K, kind.is_causal, kind.is_local)
    m, n = tiles.m_block_size, tiles.n_block_size
    is_staged = gate is not None and gate.is_elementwise and gate.is_staged
    # Two stages of keys and values, and the weights where they go through shared memory.
    while is_staged and 2 * (2 * m * K + 4 * n * K + (0 if tiles.mma_pv_is_rs else m * n)) + 1024 > _SHARED_BYTES:
        n -= 16
    element = _ELEMENTS[dtype]
    kernel = (DocumentForward if gate is None else GatedForward)(
        element, K, K, R, is_causal=kind.is_causal, is_local=kind.is_local, pack_gqa=False, tile_m=m, tile_n=n,
        num_stages=2, num_threads=384, Q_in_regs=False, intra_wg_overlap=tiles.intra_wg_overlap,
        mma_pv_is_rs=tiles.mma_pv_is_rs,
    )  # fmt: skip
    kernel.has_documents = kind.has_documents
    aux = None
    B, T, S, H, G = (cute.sym_int() for _ in range(5))
    if gate is not None:
        kernel.is_elementwise, kernel.is_staged = gate.is_elementwise, is_staged
        of_gate = _ELEMENTS[gate.dtype]
        aux = [
            _rows(of_gate, B, T, H, K)
            if gate.is_elementwise
            else make_fake_tensor(of_gate, (B, T, H), leading_dim=None)
        ]
    q, k, v, z = (_rows(element, *shape, K) for shape in ((B, T, H), (B, S, G), (B, S, G), (B, T, H)))
    lse = make_fake_tensor(Float32, (B, H, T))
    return _compiled(
        kernel, q, k, v, z, lse, Float32(1.0), None, None, None, _spans(kind, B, T), None, *_ends(kind), None, None,
        AuxData(aux, None), None, None,
    )  # fmt: skip


@functools.cache
def _backward(dtype: torch.dtype, K: int, R: int, kind: Kind) -> Callable[..., None]:
    """The main loop with R query heads a key head, whose dk and dv are float32 sums where R > 1."""
    tiles = _backward_tiles(K, kind)
    assert tiles.SdP_swapAB or not kind.has_documents  # threads hold rows of keys
    element = _ELEMENTS[dtype]
    kernel = (DocumentBackward if kind.has_documents else FlashAttentionBackwardSm90)(
        element, K, K, R, kind.is_causal, is_local=kind.is_local, deterministic=False, tile_m=tiles.m_block_size,
        tile_n=tiles.n_block_size, Q_stage=tiles.num_stages_Q, dO_stage=tiles.num_stages_dO,
        PdS_stage=tiles.num_stages_PdS, SdP_swapAB=tiles.SdP_swapAB, dKV_swapAB=tiles.dKV_swapAB,
        dQ_swapAB=tiles.dQ_swapAB, AtomLayoutMSdP=tiles.AtomLayoutMSdP, AtomLayoutNdKV=tiles.AtomLayoutNdKV,
        AtomLayoutMdQ=tiles.AtomLayoutMdQ, num_threads=(tiles.num_wg + 1) * 128, V_in_regs=False,
        dQ_single_wg=tiles.dQ_single_wg,
    )  # fmt: skip
    B, T, S, H, G, P, N, M = (cute.sym_int() for _ in range(8))
    q, k, v, dy = (_rows(element, *shape, K) for shape in ((B, T, H), (B, S, G), (B, S, G), (B, T, H)))
    lse2, delta, dq = (make_fake_tensor(Float32, (B, H, n), divisibility=4) for n in (P, P, N))
    if R > 1:
        dk, dv = (make_fake_tensor(Float32, (B, G, M), divisibility=4) for _ in range(2))
    else:
        dk, dv = (_rows(element, B, S, G, K) for _ in range(2))
    return _compiled(
        kernel, q, k, v, dy, lse2, delta, dq, dk, dv, Float32(1.0), None, None, _spans(kind, B, S), None, *_ends(kind),
        None, None, None, AuxData(None, None), None, None,
    )  # fmt: skip


@functools.cache
def _converting(
    dtype: torch.dtype, K: int, tile: int, threads: int, atoms: int, is_swapped: bool
) -> Callable[..., None]:
    """From float32 sums in the main loop's order to a gradient in rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _compile_bwd_postprocess(
            _ELEMENTS[dtype], K, tile, threads, atoms, is_swapped, False, False, False, 1, 90, False, None, 32, None
        )


def _backward_tiles(K: int, kind: Kind) -> BwdConfig:
    return _tile_size_bwd_sm90(K, K, kind.is_causal, kind.is_local)


def _compiled(kernel: object, *arguments: object) -> Callable[..., None]:
    """For the arguments' types, on the stream that is current in a call."""
    # What the libraries will rename is no matter of the caller's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cute.compile(kernel, *arguments, make_fake_stream(), options="--enable-tvm-ffi")


def _ends(kind: Kind) -> tuple[Int32 | None, Int32 | None]:
    return Int32(0) if kind.is_left else None, Int32(0) if kind.is_right else None


def _spans(kind: Kind, B: object, T: object) -> cute.Tensor | None:
    return make_fake_tensor(Int32, (cute.sym_int(), B, T)) if kind.has_documents else None


def _rows(element: type[cutlass.Numeric], *shape: object) -> cute.Tensor:
    """A tensor of any strides but the last, rows that begin at 16 bytes."""
    *sizes, _ = shape
    return make_fake_tensor(element, (*sizes, cute.sym_int()), divisibility=128 // element.width)
