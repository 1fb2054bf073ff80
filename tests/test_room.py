"""Batches that do not fit: halved, said once, and nothing left out."""

import pytest
import torch

from raft_diffusion.room import Room, is_out_of_memory


def device(most: int, tries: list[int], error: Exception | None = None):
    """Work that doubles numbers on a device with memory for `most` at once."""

    def work(batch):
        tries.append(len(batch))
        if len(batch) > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * item for item in batch]

    return work


def test_what_fits_is_not_touched():
    tries: list[int] = []
    done = list(Room("sampling").batches(range(10), 4, device(4, tries)))
    assert [list(batch) for batch, _ in done] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [number for _, part in done for number in part] == [2 * number for number in range(10)]
    assert tries == [4, 4, 2]


def test_a_batch_is_halved_until_it_fits_and_the_smaller_size_stays():
    tries: list[int] = []
    room = Room("sampling", setting="sampling.batch_size")
    with pytest.warns(UserWarning, match="no memory for sampling 8 pictures at once: .*batch_size below") as told:
        parts = [part for n in (10, 3) for _, part in room.batches(range(n), 8, device(3, tries))]
    assert tries == [8, 4, 2, 2, 2, 2, 2, 2, 1]
    assert [number for part in parts for number in part] == [2 * number for number in (*range(10), *range(3))]
    assert len(told) == 1


def test_a_last_batch_that_is_smaller_is_halved_from_its_own_size():
    tries: list[int] = []
    with pytest.warns(UserWarning, match="no memory for sampling 6"):
        list(Room("sampling").batches(range(6), 64, device(5, tries)))
    assert tries == [6, 3, 3]


def test_where_not_even_one_fits_it_is_told():
    with (
        pytest.warns(UserWarning, match="halved"),
        pytest.raises(
            ValueError, match=r"no memory for scoring even one of the texts at a time \(CUDA out of memory\.\)"
        ),
    ):
        list(Room("scoring", noun="texts").batches(range(4), 4, device(0, [])))


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"):
        list(
            Room("sampling").batches(
                range(4), 4, device(2, [], RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
            )
        )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_how_devices_say_it(error, expected):
    assert is_out_of_memory(error) is expected
