"""The embedded default on a disk that is full now and then: a typed error or a pause, never silence, never a promise that is not kept."""

import asyncio
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.end_to_end.conftest import COMMON
from tests.end_to_end.processes import FluemanProcess, running
from tests.faults.campaign import end_talk, is_settled
from tests.faults.checker import check
from tests.faults.evidence import gather_embedded
from tests.faults.talker import Habits, Talker

NUM_TALKERS = 4
NUM_TIMES_FULL = 6
DISK_BYTES = 24 << 20
SETTLED_S = 60.0
HABITS = Habits(most_tokens=30, drops=0.05, abandons=0.05)


class NodeOnSmallDisk(FluemanProcess):
    """A node whose data folder is a disk of its own, which only it sees; it is gone with the node."""

    def __init__(self, directory: Path, data_dir: Path) -> None:
        data_dir.mkdir()
        self._data_dir = data_dir
        settings = COMMON | {"FLUEMAN_DATA_DIR": str(data_dir), "FLUEMAN_RESUME_GRACE_S": "3"}
        super().__init__(directory, settings, "serve")

    @property
    def data_dir(self) -> Path:
        """The folder, as seen from outside."""
        return Path(f"/proc/{self.pid}/root{self._data_dir}")

    @property
    def has_stalled(self) -> bool:
        """Whether something could not be journaled."""
        return '"journal.stalled"' in self.log_path.read_text()

    def copy_to(self, folder: Path) -> Path:
        """What is on the disk now: SQLite cannot open a file in another's mount namespace."""
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(self.data_dir, folder, ignore=shutil.ignore_patterns("*-shm", ".incoming")))

    @contextmanager
    def full(self, num_bytes_left: int) -> Iterator[None]:
        """So many bytes are left, and no more."""
        filler = self.data_dir / "filler"
        try:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while (free := shutil.disk_usage(self.data_dir).free) > num_bytes_left:
                    file.write(bytes(min(free - num_bytes_left, 1 << 20)))
            yield
        finally:
            filler.unlink()

    def _command_line(self, port: int) -> Sequence[str]:
        mount = f'mount -t tmpfs -o size={DISK_BYTES} none "$0" && exec "$@"'
        return ["unshare", "-Urm", "sh", "-c", mount, str(self._data_dir), *super()._command_line(port)]


@pytest.fixture
def chance(seed: int) -> random.Random:
    """Of the seed that is printed."""
    return random.Random(seed)


async def test_a_full_disk_loses_nothing_of_the_embedded_store(tmp_path: Path, chance: random.Random) -> None:
    """P2, P3, P9."""
    node = NodeOnSmallDisk(tmp_path / "node", tmp_path / "var")
    with running(node):
        talkers = [Talker(f"user{number}", [node.port], chance, HABITS) for number in range(NUM_TALKERS)]
        async with asyncio.TaskGroup() as tasks:
            talking = [tasks.create_task(talker.talk()) for talker in talkers]
            for number in range(10 * NUM_TIMES_FULL):
                if number >= NUM_TIMES_FULL and node.has_stalled:
                    break  # a slow machine may write nothing while the disk is full
                await asyncio.sleep(chance.uniform(0.3, 0.8))
                with node.full(chance.choice([0, 4_096, 20_000])):
                    await asyncio.sleep(chance.uniform(0.3, 1.5))
            late = await end_talk(talkers, talking)
        ledgers = [ledger for talker in talkers for ledger in talker.ledgers]
        deadline_s = asyncio.get_running_loop().time() + SETTLED_S
        while not is_settled(evidence := gather_embedded(node.copy_to(tmp_path / "copy"))):
            if asyncio.get_running_loop().time() > deadline_s:
                break
            await asyncio.sleep(0.2)
        # Files are copied one after the other: a commit amid that is whole in none of the copies but those of the next time.
        evidence = gather_embedded(node.copy_to(tmp_path / "copy"))

    verdict = check(ledgers, evidence)
    assert verdict.complaints + late == []
    assert node.has_stalled, "the disk was never full"
    assert verdict.figures.acknowledged > 2 * NUM_TIMES_FULL, "there was no load"
