"""How much memory tensors take."""

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Counts, within `with`, the tensors that operations make, for as long as they live: `peak` is the most in bytes.

    What was there before is not counted, whatever is written into it. What backward makes again is. Workspaces that an
    operation takes and gives back are not seen. `now`: what lives at this moment.
    """

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._found: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def now(self) -> int:
        self._found = {key: (ref, size) for key, (ref, size) in self._found.items() if not ref.expired()}
        return sum(size for _, size in self._found.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {storage._cdata for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage._cdata not in before:  # else a view of what is given, or what was written into
                self._found[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out


def _storages(tree):
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
