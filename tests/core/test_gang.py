"""Order and numbering of hosts and slices."""

from __future__ import annotations

from prefect_tpu.core.gang import Gang, Host, Slice, order_slices


def make_slice(name: str, *worker_ids: int) -> Slice:
    return Slice(name, tuple(Host(f"{name}-{one}", one, "10.0.0.1", 4) for one in worker_ids))


def test_slices_sort_by_number_not_by_letters() -> None:
    """slice-10 comes after slice-2, and hosts by worker id whatever order they came in."""
    ordered = order_slices((make_slice("slice-10", 1, 0), make_slice("slice-2", 0, 1)))
    assert [one.name for one in ordered] == ["slice-2", "slice-10"]
    assert [host.worker_id for host in ordered[1].hosts] == [0, 1]


def test_process_ids_are_slice_major() -> None:
    """process id = slice_index * hosts_per_slice + host_index."""
    gang = Gang((make_slice("a", 0, 1), make_slice("b", 0, 1)))
    assert [(m.process_id, m.slice_index, m.host_index, m.slice_name) for m in gang.members] == [
        (0, 0, 0, "a"),
        (1, 0, 1, "a"),
        (2, 1, 0, "b"),
        (3, 1, 1, "b"),
    ]
    assert gang.coordinator.node_id == "a-0"
    assert gang.members[3].label == "slice 1 host 1"


def test_names_of_different_forms_can_be_sorted() -> None:
    """Names with and without numbers do not break the order."""
    names = ["b", "a-3-x", "7", "a-3"]
    assert [one.name for one in order_slices(tuple(make_slice(n, 0) for n in names))] == ["7", "a-3", "a-3-x", "b"]
