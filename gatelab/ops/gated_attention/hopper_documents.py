"""FlashAttention-4's kernels for Hopper on packed documents: tiles outside a document are left out, edges are masked.

Notable: a row's documents are spans of positions (`documents.py`), and to the kernels a span is a window whose ends are read
from memory instead of counted from the row: of a tile's first and last token for the tiles to visit, of each token in the
tiles that an edge crosses. So no tensor changes its shape, no grid depends on a value, and a tile of several documents is
computed once. The spans come in the place of lengths in use, `seqused`, one tensor that reaches every part of both kernels;
the library never sees it as lengths. Only for tensors of as many queries as keys.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import cutlass
from cutlass import Float32, Int32, const_expr, cute
from flash_attn.cute.block_info import BlockInfo
from flash_attn.cute.flash_bwd_sm90 import FlashAttentionBackwardSm90
from flash_attn.cute.flash_fwd_sm90 import FlashAttentionForwardSm90
from flash_attn.cute.mask import (
    AttentionMask,
    mask_r2p_lambda,
    r2p_bitmask_above,
    r2p_bitmask_below,
    sm90_col_to_r2p_idx,
)
from flash_attn.cute.seqlen_info import SeqlenInfoQK
from quack.layout_utils import reshape_acc_to_mn


@dataclass(frozen=True)
class DocumentLengths(SeqlenInfoQK):
    """A row of the batch, and its spans: [T] each, `start_T` and one past the end, `stop_T`."""

    start_T: cute.Tensor | None = None
    stop_T: cute.Tensor | None = None


def lengths_of(plain: Callable[[Int32], SeqlenInfoQK], spans_2BT: cute.Tensor, batch: Int32) -> DocumentLengths:
    known = plain(batch)
    same = {f.name: getattr(known, f.name) for f in fields(known)}
    return DocumentLengths(**same, start_T=spans_2BT[0, batch, None], stop_T=spans_2BT[1, batch, None])


@dataclass(frozen=True)
class DocumentBlocks(BlockInfo):
    """The tiles that the spans of a tile's tokens reach: keys of queries going forward, queries of keys going back."""

    @cute.jit
    def get_n_block_min_max(self, seqlen_info: DocumentLengths, m_block: Int32, split_idx=0, num_splits=1):
        last = cutlass.min((m_block + 1) * self.tile_m, seqlen_info.seqlen_q) - 1
        start, stop = Int32(seqlen_info.start_T[m_block * self.tile_m]), Int32(seqlen_info.stop_T[last])
        return start // self.tile_n, cute.ceil_div(stop, self.tile_n)

    @cute.jit
    def get_m_block_min_max(self, seqlen_info: DocumentLengths, n_block: Int32):
        last = cutlass.min((n_block + 1) * self.tile_n, seqlen_info.seqlen_k) - 1
        start, stop = Int32(seqlen_info.start_T[n_block * self.tile_n]), Int32(seqlen_info.stop_T[last])
        return start // self.tile_m, cute.ceil_div(stop, self.tile_m)

    @cute.jit
    def get_n_block_min_causal_local_mask(self, seqlen_info: DocumentLengths, m_block: Int32, n_block_min: Int32):
        """The first tile of keys that not all queries see to its end."""
        stop = Int32(seqlen_info.stop_T[m_block * self.tile_m])
        return cutlass.max(n_block_min, stop // self.tile_n)

    @cute.jit
    def get_n_block_min_before_local_mask(self, seqlen_info: DocumentLengths, m_block: Int32, n_block_min: Int32):
        """The first tile of keys that all queries see from its begin."""
        last = cutlass.min((m_block + 1) * self.tile_m, seqlen_info.seqlen_q) - 1
        return cutlass.max(n_block_min, cute.ceil_div(Int32(seqlen_info.start_T[last]), self.tile_n))


@dataclass(frozen=True)
class DocumentMask(AttentionMask):
    """`starts` and `stops`: the spans of the thread's rows (of its columns with `swap_AB`), empty past the last token."""

    starts: cute.Tensor | None = None
    stops: cute.Tensor | None = None

    @cute.jit
    def apply_mask(
        self, acc_S, batch_idx, head_idx, m_block, n_block, thr_mma, mask_seqlen: cutlass.Constexpr[bool],
        mask_causal: cutlass.Constexpr[bool], mask_local: cutlass.Constexpr[bool] = False, mask_mod=None,
        aux_data=None, fastdiv_mods=(None, None),
    ) -> None:  # fmt: skip
        acc_MN = reshape_acc_to_mn(acc_S, transpose=self.swap_AB)
        tile = (self.tile_m, self.tile_n) if const_expr(not self.swap_AB) else (self.tile_n, self.tile_m)
        along = 1  # of the coordinates, that along which a span runs
        places = reshape_acc_to_mn(thr_mma.partition_C(cute.make_identity_tensor(tile)), transpose=self.swap_AB)
        if const_expr(not self.swap_AB):
            begin = n_block * self.tile_n + places[0, 0][along]
            for r in cutlass.range(cute.size(self.starts), unroll_full=True):
                start, stop = sm90_col_to_r2p_idx(self.starts[r] - begin), sm90_col_to_r2p_idx(self.stops[r] - begin)
                mask_r2p_lambda(
                    acc_MN[r, None],
                    lambda s, start=start, stop=stop: r2p_bitmask_below(stop, s) & r2p_bitmask_above(start, s),
                    rank1=True,
                )
        else:
            # As places of the first thread, which are known when the kernel is compiled.
            first = thr_mma.get_slice(0).partition_C(cute.make_identity_tensor(tile))
            first_MN = reshape_acc_to_mn(first, transpose=True)
            begin = m_block * self.tile_m + places[0, 0][along]
            for c in cutlass.range(cute.size(self.starts), unroll_full=True):
                start, stop = self.starts[c] - begin, self.stops[c] - begin
                for r in cutlass.range(cute.size(acc_MN.shape[0]), unroll_full=True):
                    place = first_MN[r, 0][along]
                    acc_MN[r, c] = -Float32.inf if place < start or place >= stop else acc_MN[r, c]


@cute.jit
def spans_of_thread(
    lengths: DocumentLengths, thr_mma, tile: tuple, begin: Int32, n_tokens: Int32, swap_AB: cutlass.Constexpr[bool]
):
    """Starts and stops of the tokens whose logits a thread holds: rows of a tile of products that begins at `begin`."""
    places = reshape_acc_to_mn(thr_mma.partition_C(cute.make_identity_tensor(tile)), transpose=swap_AB)
    starts = cute.make_rmem_tensor(cute.size(places, mode=[1 if const_expr(swap_AB) else 0]), Int32)
    stops = cute.make_rmem_tensor(cute.size(starts), Int32)
    starts.fill(0)
    stops.fill(0)
    for i in cutlass.range(cute.size(starts), unroll_full=True):
        place = places[0, i] if const_expr(swap_AB) else places[i, 0]
        token = begin + place[0]
        if token < n_tokens:
            starts[i], stops[i] = Int32(lengths.start_T[token]), Int32(lengths.stop_T[token])
    return starts, stops


def on_documents(
    block_info: BlockInfo, Lengths: Callable[..., SeqlenInfoQK], slot: str
) -> tuple[DocumentBlocks, Callable[[Int32], DocumentLengths]]:
    """Both as documents have them; `slot` is the argument of the lengths that brings the spans, [2, B, T]."""
    blocks = DocumentBlocks(**{f.name: getattr(block_info, f.name) for f in fields(block_info)})
    plain = partial(Lengths.func, *Lengths.args, **(Lengths.keywords | {slot: None}))
    return blocks, partial(lengths_of, plain, Lengths.keywords[slot])


class DocumentForward(FlashAttentionForwardSm90):
    """The forward pass, in the place of `mSeqUsedK` the spans of queries where `has_documents`; one that is then compiled
    with a window on both sides. A program computes one tile of queries."""

    has_documents = False

    @cute.jit
    def load(
        self, mQ, mK, mV, sQ, sK, sV, tma_atom_Q, tma_atom_K, tma_atom_V, pipeline_k, pipeline_v, pipeline_q,
        gmem_tiled_copy_Q, mPageTable, blocksparse_tensors, block_info, SeqlenInfoCls, TileSchedulerCls,
    ):  # fmt: skip
        blocks, Lengths = block_info, SeqlenInfoCls
        if const_expr(self.has_documents):
            blocks, Lengths = on_documents(block_info, SeqlenInfoCls, "mSeqUsedK")
        FlashAttentionForwardSm90.load(
            self, mQ, mK, mV, sQ, sK, sV, tma_atom_Q, tma_atom_K, tma_atom_V, pipeline_k, pipeline_v, pipeline_q,
            gmem_tiled_copy_Q, mPageTable, blocksparse_tensors, blocks, Lengths, TileSchedulerCls,
        )  # fmt: skip

    @cute.jit
    def mma(
        self, tiled_mma_qk, tiled_mma_pv, mO, mLSE, sQ, sK, sVt, sP, sO, learnable_sink, pipeline_k, pipeline_v,
        pipeline_q, gmem_tiled_copy_O, tma_atom_O, tidx, softmax_scale_log2, softmax_scale, block_info, SeqlenInfoCls,
        AttentionMaskCls, TileSchedulerCls, blocksparse_tensors, aux_data, fastdiv_mods,
    ):  # fmt: skip
        blocks, Lengths, Mask = block_info, SeqlenInfoCls, AttentionMaskCls
        if const_expr(self.has_documents):
            blocks, Lengths = on_documents(block_info, SeqlenInfoCls, "mSeqUsedK")
            m_block, _, batch, _ = TileSchedulerCls().initial_work_tile_info().tile_idx
            lengths = Lengths(batch)
            starts, stops = spans_of_thread(
                lengths, tiled_mma_qk.get_slice(tidx), (self.tile_m, self.tile_n), m_block * self.tile_m,
                lengths.seqlen_q, False,
            )  # fmt: skip
            Mask = partial(
                DocumentMask, *AttentionMaskCls.args, **AttentionMaskCls.keywords, starts=starts, stops=stops
            )
        FlashAttentionForwardSm90.mma(
            self, tiled_mma_qk, tiled_mma_pv, mO, mLSE, sQ, sK, sVt, sP, sO, learnable_sink, pipeline_k, pipeline_v,
            pipeline_q, gmem_tiled_copy_O, tma_atom_O, tidx, softmax_scale_log2, softmax_scale, blocks, Lengths, Mask,
            TileSchedulerCls, blocksparse_tensors, aux_data, fastdiv_mods,
        )  # fmt: skip


class DocumentBackward(FlashAttentionBackwardSm90):
    """The backward main loop, in the place of `mSeqUsedQ` the spans of keys; compiled with a window on both sides. A program
    computes one tile of keys."""

    @cute.jit
    def load(
        self, mQ, mK, mV, mdO, mLSE, mdPsum, sQ, sK, sV, sdO, sLSE, sdPsum, tma_atom_Q, tma_atom_K, tma_atom_V,
        tma_atom_dO, pipeline_Q, pipeline_dO, block_info, SeqlenInfoCls, TileSchedulerCls, blocksparse_tensors=None,
        qhead_per_kvhead_divmod=None,
    ):  # fmt: skip
        blocks, Lengths = on_documents(block_info, SeqlenInfoCls, "mSeqUsedQ")
        FlashAttentionBackwardSm90.load(
            self, mQ, mK, mV, mdO, mLSE, mdPsum, sQ, sK, sV, sdO, sLSE, sdPsum, tma_atom_Q, tma_atom_K, tma_atom_V,
            tma_atom_dO, pipeline_Q, pipeline_dO, blocks, Lengths, TileSchedulerCls, blocksparse_tensors,
            qhead_per_kvhead_divmod,
        )  # fmt: skip

    @cute.jit
    def mma(
        self, tiled_mma_SdP, tiled_mma_dK, tiled_mma_dV, tiled_mma_dQ, mdK, mdV, mdK_semaphore, mdV_semaphore, mdQaccum,
        sQ, sK, sV, sdO, sP, sdS, sLSE, sdPsum, sdQaccum, pipeline_Q, pipeline_dO, tidx, tma_atom_dK, tma_atom_dV,
        r2s_tiled_copy_dQaccum, softmax_scale_log2, softmax_scale, block_info, SeqlenInfoCls, AttentionMaskCls,
        TileSchedulerCls, aux_data, fastdiv_mods, blocksparse_tensors=None, qhead_per_kvhead_divmod=None,
        is_dQ_wg: cutlass.Constexpr[bool] = True,
    ):  # fmt: skip
        blocks, Lengths = on_documents(block_info, SeqlenInfoCls, "mSeqUsedQ")
        n_block, _, batch, _ = TileSchedulerCls().initial_work_tile_info().tile_idx
        lengths = Lengths(batch)
        starts, stops = spans_of_thread(
            lengths, tiled_mma_SdP.get_slice(tidx), (self.tile_n, self.tile_m), n_block * self.tile_n,
            lengths.seqlen_k, True,
        )  # fmt: skip
        Mask = partial(DocumentMask, *AttentionMaskCls.args, **AttentionMaskCls.keywords, starts=starts, stops=stops)
        FlashAttentionBackwardSm90.mma(
            self, tiled_mma_SdP, tiled_mma_dK, tiled_mma_dV, tiled_mma_dQ, mdK, mdV, mdK_semaphore, mdV_semaphore,
            mdQaccum, sQ, sK, sV, sdO, sP, sdS, sLSE, sdPsum, sdQaccum, pipeline_Q, pipeline_dO, tidx, tma_atom_dK,
            tma_atom_dV, r2s_tiled_copy_dQaccum, softmax_scale_log2, softmax_scale, blocks, Lengths, Mask,
            TileSchedulerCls, aux_data, fastdiv_mods, blocksparse_tensors, qhead_per_kvhead_divmod, is_dQ_wg=is_dQ_wg,
        )  # fmt: skip

    @cute.jit
    def dQaccum_store(
        self, mdQaccum, sdQaccum, block_info, TileSchedulerCls, SeqlenInfoCls, blocksparse_tensors=None,
        mdQ_semaphore=None,
    ):  # fmt: skip
        blocks, Lengths = on_documents(block_info, SeqlenInfoCls, "mSeqUsedQ")
        FlashAttentionBackwardSm90.dQaccum_store(
            self, mdQaccum, sdQaccum, blocks, TileSchedulerCls, Lengths, blocksparse_tensors, mdQ_semaphore
        )
