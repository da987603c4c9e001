"""Ops without arithmetic, by name: those that move elements, that only write, and that do nothing.

Those of them that read less than their whole input have formulas in `indexing`.
"""

# No arithmetic: every input is read, every output written.
MOVES = frozenset(
    """
    clone _to_copy to contiguous cat stack _stack _chunk_cat repeat flip roll tril triu fill copy
    _copy_from _copy_from_and_resize expand_copy view_copy permute_copy transpose_copy t_copy
    squeeze_copy unsqueeze_copy detach_copy alias_copy _reshape_copy _reshape_alias_copy _conj_copy
    view_as_real_copy view_as_complex_copy _fw_primal_copy _make_dual_copy lift_fresh_copy
    _lazy_clone repeat_interleave reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d slice_backward select_backward
    unfold_backward diagonal_backward diag_embed block_diag rot90 resize_as _pin_memory real imag
    _mkldnn_reshape _mkldnn_transpose to_mkldnn mkldnn_reorder_conv2d_weight
    mkldnn_reorder_conv3d_weight _cudnn_rnn_flatten_weight _pack_padded_sequence int_repr
    _make_per_tensor_quantized_tensor _make_per_channel_quantized_tensor
    """.split()
)

# Written once, nothing read.
CREATES = frozenset(
    """
    zeros zeros_like ones ones_like full full_like arange range linspace logspace eye new_zeros
    new_ones new_full scalar_tensor tril_indices triu_indices zero bartlett_window blackman_window
    hann_window hamming_window kaiser_window fft_fftfreq fft_rfftfreq from_file
    _new_zeros_with_same_feature_meta _cudnn_init_dropout_state _fill_mem_eff_dropout_mask
    """.split()
)

# No kernel at all: views that change their argument, memory without content, questions to the host.
NOTHING = frozenset(
    """
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided empty_quantized
    _empty_affine_quantized _empty_per_channel_affine_quantized _efficientzerotensor
    detach detach_ alias lift_fresh lift set_ set resize_ resize resize_as_ _resize_output_
    _resize_output as_strided_ t_ transpose_ squeeze_ unsqueeze_ swapaxes_ swapdims_ _unsafe_view
    unsafe_split unsafe_split_with_sizes unsafe_chunk _reshape_alias _mkldnn_transpose_
    sym_size sym_stride sym_numel sym_storage_offset record_stream is_same_size is_set_to is_pinned
    is_coalesced _has_same_storage_numel qscheme q_scale q_zero_point q_per_channel_scales
    q_per_channel_zero_points q_per_channel_axis dense_dim sparse_dim _dimI _dimV _nnz _coalesced_
    _local_scalar_dense item _assert_async _assert_scalar _assert_tensor_metadata
    _functional_assert_async _functional_assert_scalar sym_constrain_range
    sym_constrain_range_for_size _functional_sym_constrain_range
    _functional_sym_constrain_range_for_size _make_dep_token _print _fused_sdp_choice
    _use_cudnn_ctc_loss _use_miopen_ctc_loss _nested_tensor_size _nested_tensor_strides
    _nested_tensor_storage_offsets _nested_get_offsets _nested_get_lengths _nested_get_ragged_idx
    _nested_get_min_seqlen _nested_get_max_seqlen _nested_get_jagged_dummy
    _cslt_sparse_mm_search _debug_has_internal_overlap _version
    """.split()
)
