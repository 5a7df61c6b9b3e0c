"""The order of a dialogue's items: append, insert, replace, rate, remove. Ranks are stored with the items: an insert moves no other."""

from collections.abc import Iterable, Iterator

from msgspec import structs

from sessions.feedback import Feedback
from sessions.items import Item, num_chars
from sessions.store import PlacedItem


class Timeline:
    """Items by rank, each id once. `num_chars`: how long what they all say is."""

    __slots__ = ("_by_id", "_placed", "num_chars")

    def __init__(self, placed: Iterable[PlacedItem] = ()) -> None:
        self._placed = sorted(placed, key=lambda entry: entry.rank)
        self._by_id = {entry.item.id: entry for entry in self._placed}
        self.num_chars = sum(num_chars(entry.item) for entry in self._placed)

    def __len__(self) -> int:
        return len(self._placed)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._by_id

    def __iter__(self) -> Iterator[Item]:
        return (entry.item for entry in self._placed)

    @property
    def placed(self) -> tuple[PlacedItem, ...]:
        """The items with their ranks, in order."""
        return tuple(self._placed)

    def get(self, item_id: str) -> Item | None:
        """The item of that id."""
        found = self._by_id.get(item_id)
        return found.item if found else None

    def feedback(self, item_id: str) -> Feedback | None:
        """What is thought of the item of that id; None when nothing is, or the item is gone."""
        found = self._by_id.get(item_id)
        return found.feedback if found else None

    def last_id(self) -> str | None:
        """The id of the last item."""
        return self._placed[-1].item.id if self._placed else None

    def previous_id(self, item_id: str) -> str | None:
        """The id of the item before that one."""
        index = self._placed.index(self._by_id[item_id])
        return self._placed[index - 1].item.id if index else None

    def append(self, item: Item) -> list[PlacedItem]:
        """Put the item last; what is to be saved."""
        rank = self._placed[-1].rank + 1 if self._placed else 0.0
        return [self._put(len(self._placed), PlacedItem(rank, item))]

    def insert(self, item: Item, after: str | None) -> list[PlacedItem]:
        """Put the item after that one, or first when `after` is None; what is to be saved."""
        index = 0 if after is None else self._placed.index(self._by_id[after]) + 1
        if index == len(self._placed):
            return self.append(item)
        high = self._placed[index].rank
        low = self._placed[index - 1].rank if index else high - 2
        rank = (low + high) / 2
        if low < rank < high:
            return [self._put(index, PlacedItem(rank, item))]
        # Halving a gap some fifty times ends a float's precision: number all anew.
        self._put(index, PlacedItem(rank, item))
        self._placed = [structs.replace(entry, rank=float(rank)) for rank, entry in enumerate(self._placed)]
        self._by_id = {entry.item.id: entry for entry in self._placed}
        return list(self._placed)

    def replace(self, item: Item) -> list[PlacedItem]:
        """Put the item where the one of its id stands; nothing when that was removed meanwhile."""
        old = self._by_id.get(item.id)
        if old is None:
            return []
        return [self._swap(old, structs.replace(old, item=item))]

    def rate(self, item_id: str, feedback: Feedback) -> list[PlacedItem]:
        """Keep the feedback with the item of that id, which must be there; what is to be saved."""
        old = self._by_id[item_id]
        return [self._swap(old, structs.replace(old, feedback=feedback, is_untold=False))]

    def remove(self, item_id: str) -> None:
        """Forget the item of that id, which must be there."""
        entry = self._by_id.pop(item_id)
        self._placed.remove(entry)
        self.num_chars -= num_chars(entry.item)

    def _swap(self, old: PlacedItem, new: PlacedItem) -> PlacedItem:
        self._placed[self._placed.index(old)] = new
        self._by_id[new.item.id] = new
        self.num_chars += num_chars(new.item) - num_chars(old.item)
        return new

    def _put(self, index: int, entry: PlacedItem) -> PlacedItem:
        self._placed.insert(index, entry)
        self._by_id[entry.item.id] = entry
        self.num_chars += num_chars(entry.item)
        return entry
