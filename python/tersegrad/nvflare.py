"""NVFlare: a pair of filters for model differences. `CompressDXO` on the clients' results, `DecompressDXO` on the server.

Needs ``pip install 'tersegrad[nvflare]'``. In a job's configuration::

    config_fed_client.json:  "task_result_filters": [{"tasks": ["train"], "filters": [{
        "path": "tersegrad.nvflare.CompressDXO",
        "args": {"codec": {"codec": "TopK", "density": 0.01, "values": {"codec": "Quantize", "bits": 4}}}}]}]
    config_fed_server.json:  "task_data_filters":   [{"tasks": ["train"], "filters": [{"path": "tersegrad.nvflare.DecompressDXO"}]}],
                             "task_result_filters": [{"tasks": ["train"], "filters": [{"path": "tersegrad.nvflare.DecompressDXO"}]}]

The server's filter stands in both chains: it learns the layout from the model that goes out, and believes no client about it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    from nvflare.apis.dxo import DXO, DataKind, MetaKey
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.apis.fl_constant import FilterKey, FLContextKey
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
except ImportError as error:
    raise ImportError(
        "tersegrad.nvflare needs NVFlare: pip install 'tersegrad[nvflare]'"
    ) from error

from .codec import Codec
from .errors import PayloadError, StateError
from .federated import Client, Layout, Limits, decode

__all__ = ["CompressDXO", "DecompressDXO"]

#: The only entry of a compressed DXO's data, and what its meta says about the algorithm.
KEY = "tersegrad"
_LAYOUT = "tersegrad.layout"


class CompressDXO(DXOFilter):  # type: ignore[misc,unused-ignore]
    """Client side: packs a WEIGHT_DIFF into one message, with error feedback.

    Parameters
    ----------
    codec : Codec, or dict as of `Codec.to_dict`
    min_size, error_feedback
        As in `tersegrad.federated.Client`. Residuals live as long as the job does on this client.
    """

    def __init__(
        self, codec: Codec | dict[str, Any], min_size: int = 64, error_feedback: bool = True
    ) -> None:
        kinds = [DataKind.WEIGHT_DIFF]
        super().__init__(supported_data_kinds=kinds, data_kinds_to_filter=kinds)
        self.codec, self.min_size, self.error_feedback = codec, min_size, error_feedback
        self._codec = codec if isinstance(codec, Codec) else Codec.from_dict(codec)
        self._clients: dict[tuple[str, bytes], Client] = {}
        self._client_for("", b"")  # checks the options

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        """The same DXO, with its arrays in one message of bytes."""
        layout = Layout.of(dxo.data)
        client = self._client_for(str(fl_ctx.get_job_id()), layout.digest)
        before = sum(np.asarray(array).nbytes for array in dxo.data.values())
        message = client.encode(dxo.data)
        self.log_info(fl_ctx, f"tersegrad: {before:,} bytes become {len(message):,}")
        meta = {**(dxo.meta or {}), MetaKey.PROCESSED_ALGORITHM: KEY}
        return DXO(DataKind.WEIGHT_DIFF, {KEY: message}, meta)

    def _client_for(self, job: str, digest: bytes) -> Client:
        if (job, digest) not in self._clients:
            options = {"min_size": self.min_size, "error_feedback": self.error_feedback}
            self._clients[job, digest] = Client(self._codec, **options)  # type: ignore[arg-type]
        return self._clients[job, digest]


class DecompressDXO(DXOFilter):  # type: ignore[misc,unused-ignore]
    """Server side: remembers the layout of the model that goes out, and unpacks what comes back as float32 NumPy arrays.

    A result that is not a sound message for this model raises `PayloadError`, which NVFlare turns into an error result of that
    client; its controllers go on without it while enough clients are left (``ignore_result_error``).

    Parameters
    ----------
    max_norm, max_abs, max_weight
        As in `tersegrad.federated.Limits`; the weight is the number of steps that a client reports.
    """

    def __init__(
        self,
        max_norm: float | None = None,
        max_abs: float = Limits.max_abs,
        max_weight: float = Limits.max_weight,
    ) -> None:
        kinds = [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF]
        super().__init__(supported_data_kinds=kinds, data_kinds_to_filter=kinds)
        self.max_norm, self.max_abs, self.max_weight = max_norm, max_abs, max_weight
        self._limits = Limits(max_norm=max_norm, max_abs=max_abs, max_weight=max_weight)

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """None for the model that goes out, which stays as it is; for a result the DXO that was compressed."""
        if fl_ctx.get_prop(FLContextKey.FILTER_DIRECTION) == FilterKey.OUT:
            fl_ctx.set_prop(_LAYOUT, Layout.of(dxo.data), private=True, sticky=True)
            return None
        layout = fl_ctx.get_prop(_LAYOUT)
        if layout is None:
            raise StateError(
                "the layout of the model is not known: DecompressDXO must be among the server's task_data_filters too"
            )
        if dxo.data_kind != DataKind.WEIGHT_DIFF or list(dxo.data) != [KEY]:
            raise PayloadError(
                f"a client sent {dxo.data_kind} of {len(dxo.data)} arrays, not one compressed WEIGHT_DIFF: does it have CompressDXO?"
            )
        weight = dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND)
        if weight is not None:
            self._limits.check_weight(weight)
        update = decode(dxo.data[KEY], layout, limits=self._limits)
        meta = {key: x for key, x in dxo.meta.items() if key != MetaKey.PROCESSED_ALGORITHM}
        return DXO(DataKind.WEIGHT_DIFF, update, meta)
