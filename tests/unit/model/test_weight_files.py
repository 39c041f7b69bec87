"""Reading weight files: safe, and with sentences for what is wrong."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from focus_lab.errors import WeightsError
from focus_lab.model.weight_files import load_weights, read_weights, weights_digest

STATE = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


class Trap:
    """Would run code when unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemError('unpickled')",)


@pytest.mark.parametrize("content", [STATE, {"model": STATE, "epoch": 3}, {"state_dict": STATE}])
def test_state_dicts_are_found_bare_and_nested(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    assert read_weights(str(tmp_path / "w.pth")).keys() == STATE.keys()


def test_safetensors_are_read(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    assert torch.equal(read_weights(str(tmp_path / "w.safetensors"))["weight"], STATE["weight"])


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"weight": Trap()}, tmp_path / "w.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    for name in ("w.pth", "raw.pth"):
        with pytest.raises(WeightsError, match="cannot be read as tensors"):
            read_weights(str(tmp_path / name))


def test_broken_and_missing_files_are_named(tmp_path):
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(WeightsError, match=f"got '.*{name}'"):
            read_weights(str(tmp_path / name))
    with pytest.raises(WeightsError, match="no such file"):
        read_weights(str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("garbage", [b"", b"\x80", b"\x80\x02.", b".", b"0.", b"PK\x03\x04", b"e."])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_garbage_of_any_kind_is_a_sentence(tmp_path, garbage, name):
    (tmp_path / name).write_bytes(garbage)
    with pytest.raises(WeightsError, match="cannot be read as tensors"):
        read_weights(str(tmp_path / name))


def test_the_digest_of_weights_is_that_of_their_file(tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    first = weights_digest(str(tmp_path / "w.pth"))
    assert first == weights_digest(str(tmp_path / "w.pth"))
    torch.save({"weight": torch.ones(1)}, tmp_path / "w.pth")
    assert weights_digest(str(tmp_path / "w.pth")) != first


def test_files_without_tensors_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        read_weights(str(tmp_path / "list.pth"))
    with pytest.raises(WeightsError, match="no tensors"):
        read_weights(str(tmp_path / "empty.pth"))


@pytest.mark.parametrize(
    ("name", "reason"), [("no_such_package", "no such package"), ("json", "got 0")]
)
def test_packages_must_exist_and_ship_one_file(name, reason):
    with pytest.raises(WeightsError, match=reason):
        read_weights(f"package:{name}")


def test_weights_load_only_when_names_and_shapes_agree():
    module = torch.nn.Linear(3, 2)
    load_weights(module, STATE, "checkpoint")
    assert torch.equal(module.weight, STATE["weight"])
    wrong = {"weight": torch.ones(3, 2), "surplus": torch.zeros(1)}
    with pytest.raises(WeightsError) as error:
        load_weights(module, wrong, "checkpoint")
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert "bias" in lines[0]
    assert "surplus" in lines[1]
    assert "weight (3, 2) instead of (2, 3)" in lines[2]
