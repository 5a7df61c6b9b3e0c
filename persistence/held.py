"""Objects of the archive that were read last, as they came: who looks back in a session reads its parts more than once."""

from collections import OrderedDict


class Held:
    """Up to `max_bytes` of objects by key."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._objects: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        """The object, if it is held."""
        if key in self._objects:
            self._objects.move_to_end(key)
        return self._objects.get(key)

    def put(self, key: str, data: bytes) -> None:
        """Hold the object, and let go of what was not asked for longest."""
        if key in self._objects or len(data) > self._max_bytes:
            return
        self._objects[key] = data
        self._num_bytes += len(data)
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= len(self._objects.popitem(last=False)[1])
