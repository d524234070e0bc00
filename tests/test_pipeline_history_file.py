import numpy as np
import pytest

from pipeline.histories import Histories
from pipeline.history_file import HistoryFile


def test_blocks_come_back_as_one(tmp_path):
    file = HistoryFile(tmp_path / "h.int32")
    for block in ([[1, 2], []], [], [[3]], [[]]):
        file.append(Histories.of(block))
    histories = file.map()
    assert isinstance(histories.items_N, np.memmap)
    assert (histories.items_N.dtype, histories.offsets.dtype) == (np.int32, np.int64)
    assert [history.tolist() for history in (histories[u] for u in range(len(histories)))] == [[1, 2], [], [3], []]
    with pytest.raises(ValueError, match="read-only"):
        histories.items_N[0] = 5


@pytest.mark.parametrize("blocks", [[], [[]], [[[], []]]])
def test_histories_without_items(tmp_path, blocks):
    file = HistoryFile(tmp_path / "h.int32")
    for block in blocks:
        file.append(Histories.of(block))
    histories = file.map()
    assert len(histories) == sum(map(len, blocks))
    assert histories.items_N.dtype == np.int32
    assert histories.take(np.arange(len(histories))).offsets.tolist() == [0] * (len(histories) + 1)


def test_a_file_that_exists_is_not_added_to(tmp_path):
    HistoryFile(tmp_path / "h.int32")
    with pytest.raises(FileExistsError):
        HistoryFile(tmp_path / "h.int32")
