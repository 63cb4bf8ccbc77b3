"""The model on its way down: whole to those who have none, as compressed changes to those who hold an earlier one."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord

from ..codec import Codec
from ..federated import Client, Layout, apply, decode
from . import records
from .records import Arrays


class Broadcast:
    """The model that clients hold, its compressed changes, and who holds which version.

    What a change leaves out stays in the difference between the server's model and this one, and so is in the next change: that is
    error feedback (Tang et al. 2019, "DoubleSqueeze"), and it needs no residual. Changes are kept for clients that sat out some
    rounds, until the whole model would be smaller than they are.

    Parameters
    ----------
    codec : Codec, optional
        Without it the model travels whole, and nothing is kept.
    rules, min_size
        As in `tersegrad.federated.Client`.
    """

    def __init__(
        self, codec: Codec | None, rules: Mapping[str, Codec] | None, min_size: int
    ) -> None:
        self.encoder = (
            None
            if codec is None
            else Client(codec, rules=rules, min_size=min_size, error_feedback=False)
        )
        self._arrays = ArrayRecord()
        self._whole = ArrayRecord()
        self._held: Arrays = {}
        self._changes: dict[int, Array] = {}
        self._versions: dict[int, int] = {}
        self.version = 0

    def publish(self, arrays: ArrayRecord) -> None:
        """Make `arrays` the model that `record_for` brings a node to, or as near to it as the codec gets.

        Raises
        ------
        NonFiniteError
            If the model is infinite or NaN somewhere.
        """
        if self.encoder is None:
            self._whole = arrays
        elif not same(arrays, self._arrays):
            model = records.to_numpy(arrays)
            layout = Layout.of(model)
            if self._held and layout == Layout.of(self._held):
                self._change(self.encoder, model, layout)
            else:
                self._held = model
                self._changes.clear()
                self._versions.clear()
            self.version += 1
            self._whole = records.to_record(self._held)
        self._arrays = arrays

    def _change(self, encoder: Client, model: Arrays, layout: Layout) -> None:
        change = encoder.encode(model, base=self._held)
        self._held = apply(self._held, decode(change, layout))
        self._changes[self.version + 1] = records.to_array(change)
        whole = sum(array.nbytes for array in self._held.values())
        while sum(len(array.data) for array in self._changes.values()) > whole:
            del self._changes[min(self._changes)]

    def record_for(self, node: int) -> tuple[ArrayRecord, bool]:
        """What to send to a node, and whether that is changes of what it holds."""
        missing = range(self._versions.get(node, -1) + 1, self.version + 1)
        if self.encoder and all(number in self._changes for number in missing):
            return ArrayRecord({str(number): self._changes[number] for number in missing}), True
        return self._whole, False

    def arrived(self, node: int) -> None:
        """A node answered: it holds this version."""
        self._versions[node] = self.version

    def lost(self, node: int) -> None:
        """A node failed: nobody knows what it holds, and it gets the whole model next time."""
        self._versions.pop(node, None)


def same(a: ArrayRecord, b: ArrayRecord) -> bool:
    return list(a) == list(b) and all(a[name].data == b[name].data for name in a)
