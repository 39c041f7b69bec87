"""The measurement of the compiled operator: who is timed, who is not and why, what a row says."""

import json
import math
from dataclasses import replace

import pytest
import torch

from focus_lab.errors import FocusLabError, UserError
from focus_lab.ops import CompiledOpError, bench, contenders, library_state
from focus_lab.ops.bench_cases import CASES, Case, make_inputs, reference_points
from focus_lab.ops.clock import interleaved
from focus_lab.ops.peers import NotInstalled, Peer, peers, reference
from focus_lab.ops.reference import (
    reference_deformable_attention,
    reference_projected_deformable_attention,
    samples_of,
)

CPU = torch.device("cpu")
TINY = Case("tiny", ((3, 5), (2, 2)), batch=2, heads=2, channels=4, points=2)


@pytest.fixture
def library():
    """The test is about the compiled operator itself."""
    state = library_state()
    if not state.ok:
        pytest.skip(f"compiled operators: {state.reason}")


@pytest.fixture(autouse=True)
def ours_is_the_reference(monkeypatch, request):
    """Unless a test wants the library: the others run without one."""
    if "library" not in request.fixturenames:
        for plain in (reference_deformable_attention, reference_projected_deformable_attention):
            name = plain.__name__.replace("reference", "compiled")
            monkeypatch.setattr(contenders, name, plain)


def peer(name, change):
    """The reference with something done to its output."""

    def bind(inputs):
        call, wanted = reference().bind(inputs)
        return lambda *tensors: change(call(*tensors)), wanted

    return Peer(name, bind)


def measure(*others, dtypes=(torch.float32,), case=TINY):
    result = {"rows": [], "skipped": []}
    bench.measure([case], dtypes, others, CPU, rounds=2, result=result)
    return result["rows"], result["skipped"]


def test_a_row_for_each_direction_and_peer():
    rows, skipped = measure(reference(), peer("other", lambda output: output * 1))
    assert skipped == []
    assert [(row["direction"], row["against"]) for row in rows] == [
        (direction, name) for direction in bench.DIRECTIONS for name in ("reference", "other")
    ]
    assert {(row["case"], row["dtype"]) for row in rows} == {("tiny", "float32")}
    assert all(row["ours_ms"] > 0 and row["ours_gb_s"] > 0 for row in rows)
    assert all(row["against_error"] < 1e-6 for row in rows)


@pytest.mark.parametrize("queries", [None, 3])
def test_projections_are_timed_against_making_samples_first(queries):
    rows, skipped = measure(case=replace(TINY, projected=True, queries=queries))
    assert skipped == []
    assert {row["against"] for row in rows} == {"reference", "glue + compiled"}
    assert all(row["against_error"] < 1e-6 for row in rows)


@pytest.mark.parametrize("queries", [None, 3])
def test_projections_make_the_samples_of_the_same_case(queries):
    case = replace(TINY, queries=queries)
    expected, _ = make_inputs(case, torch.float32, CPU)
    inputs, _ = make_inputs(replace(case, projected=True), torch.float32, CPU)
    sizes = torch.tensor([(width, height) for height, width in TINY.shapes])
    made = samples_of(inputs.reference_points, inputs.locations, inputs.weights.flatten(3), sizes)
    torch.testing.assert_close(made, (expected.locations, expected.weights))


def test_the_ratio_is_theirs_over_ours(monkeypatch):
    # Two rounds of ours, then two of the peer, in each direction.
    monkeypatch.setattr(bench, "interleaved", lambda steps, device, rounds: [[2, 4], [6, 24]])
    rows, _ = measure(reference())
    for row in rows:
        assert (row["ours_ms"], row["against_ms"], row["ratio"]) == (3, 15, 5)
        assert row["ratio_range"] == [3, 6]


def test_a_wrong_peer_is_listed_with_its_reason_and_not_timed():
    rows, skipped = measure(reference(), peer("zeros", lambda output: output * 0))
    assert {row["against"] for row in rows} == {"reference"}
    assert skipped == [
        {
            "against": "zeros",
            "case": "tiny",
            "dtype": "float32",
            "reason": "differs from the reference, output by 1 of its norm",
        }
    ]


def test_a_peer_with_wrong_gradients_is_not_timed():
    rows, (skip,) = measure(peer("detached", lambda out: out.detach() + 0 * out))
    assert rows == []
    assert skip["reason"].startswith("differs from the reference, gradient of value by 1")


def test_a_peer_that_answers_nan_is_not_timed():
    rows, (skip,) = measure(peer("nan", lambda output: output * math.nan))
    assert rows == []
    assert "output by nan" in skip["reason"]


def test_a_peer_that_fails_is_listed_with_what_it_says():
    def refuse(output):
        raise RuntimeError("no kernel\nand a long trace")

    rows, (skip,) = measure(peer("broken", refuse))
    assert rows == []
    assert skip["reason"] == "fails with RuntimeError: no kernel"


def test_a_peer_that_is_not_installed_is_listed_once_for_all_cases():
    def bind(inputs):
        raise NotInstalled("not installed")

    _, skipped = measure(Peer("absent", bind), dtypes=(torch.float32, torch.bfloat16))
    assert skipped == [
        {"against": "absent", "case": None, "dtype": None, "reason": "not installed"}
    ]


def test_a_wrong_result_of_ours_ends_the_measurement(monkeypatch):
    monkeypatch.setattr(
        contenders,
        "compiled_deformable_attention",
        lambda *inputs: reference_deformable_attention(*inputs) * 1.1,
    )
    with pytest.raises(FocusLabError, match=r"tiny, float32: the compiled operator differs"):
        measure(reference())


def test_sixteen_bit_locations_do_not_pass_for_agreement():
    wide = Case("wide", ((100, 167),), queries=64, heads=2, channels=4)

    def bind(inputs):
        call, wanted = reference().bind(inputs)
        return call, wanted.to(inputs.value.dtype)

    _, (skip,) = measure(Peer("16 bits", bind), dtypes=(torch.bfloat16,), case=wide)
    assert skip["reason"].startswith("differs from the reference, output by")


@pytest.mark.parametrize("name", [other.name for other in peers(CPU)])
def test_a_known_peer_agrees_or_says_why_not(name):
    (other,) = [other for other in peers(CPU) if other.name == name]
    try:
        other.bind(make_inputs(TINY, torch.float32, CPU)[0])
    except NotInstalled as error:
        pytest.skip(f"{name}: {error}")
    rows, skipped = measure(other)
    assert rows, skipped


def test_in_a_round_each_has_its_turn():
    turns = []
    times = interleaved([lambda: turns.append("a"), lambda: turns.append("b")], CPU, rounds=3)
    assert [len(found) for found in times] == [3, 3]
    blocks = [turn for turn, before in zip(turns, [None, *turns], strict=False) if turn != before]
    assert blocks == ["a", "b"] * 4  # the first of them to warm up


def test_bytes_are_those_of_the_bound():
    # Dense encoder, two images: 159 MB forward, 319 backward; 114 and 341 in 16 bits.
    dense = next(case for case in CASES if case.name == "dense")
    for dtype, forward, backward in ((torch.float32, 159, 319), (torch.bfloat16, 114, 341)):
        with torch.device("meta"):
            tokens, grid = 22_223, (2, 22_223, 8, 4, 4)
            inputs = bench.Inputs(
                torch.empty(2, tokens, 8, 32, dtype=dtype),
                dense.shapes,
                torch.empty(*grid, 2),
                torch.empty(grid),
            )
        assert round(bench.compulsory_bytes(inputs, "forward") / 1e6) == forward
        assert round(bench.compulsory_bytes(inputs, "backward") / 1e6) == backward
        assert round(bench.compulsory_bytes(inputs, "forward+backward") / 1e6) == pytest.approx(
            forward + backward, abs=1
        )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kept_tokens_are_distinct_centres_and_in_order_where_the_case_says_so(case):
    points = reference_points(case, torch.Generator().manual_seed(0))
    tokens = sum(height * width for height, width in case.shapes)
    assert points.shape == (case.batch, case.queries or int(tokens * case.kept), 2)
    assert points.amin() > 0
    assert points.amax() < 1
    if case.queries is None and case.order == "index":
        first = points[0, : int(case.shapes[0][0] * case.shapes[0][1] * case.kept * 0.9)]
        rows = (first[:, 1] * case.shapes[0][0]).floor()
        assert (rows.diff() >= 0).all()


def test_along_the_image_neighbours_follow_each_other():
    orders = {}
    for case in CASES:
        if case.name.startswith("kept-30"):
            points = reference_points(case, torch.Generator().manual_seed(0))[0]
            orders[case.order] = points
    # The same tokens, whatever the order.
    rows = {order: sorted(points.tolist()) for order, points in orders.items()}
    assert rows["index"] == rows["score"] == rows["morton"]
    distance = {
        order: float(points.diff(dim=0).norm(dim=1).mean()) for order, points in orders.items()
    }
    assert distance["morton"] < distance["score"] / 10


def test_locations_lie_around_the_centre_of_the_query():
    inputs, grad_output = make_inputs(TINY, torch.bfloat16, CPU)
    assert inputs.locations.dtype == inputs.weights.dtype == torch.float32
    assert inputs.value.dtype == grad_output.dtype == torch.bfloat16
    centres = reference_points(TINY, torch.Generator().manual_seed(0))
    sizes = torch.tensor([(width, height) for height, width in TINY.shapes])[:, None]
    pixels = (inputs.locations - centres[:, :, None, None, None]) * sizes
    assert pixels.abs().amax() < TINY.points + 5
    assert pixels[:, :, 0, :, 1, 0].mean() == pytest.approx(2, abs=0.5)  # head 0 looks right


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"cases": ["dnse"]}, "--cases: no such case, got 'dnse'; beginnings of dense, "),
        ({"dtypes": ["int8"]}, "--dtypes: no such dtype, got 'int8'; one of float32, "),
        ({"rounds": 0}, "--rounds: must be at least 1, got 0"),
        ({"threads": 0}, "--threads: must be at least 1, got 0"),
        ({"device": "tpu"}, "--device: no such device, got 'tpu'; cpu or cuda"),
    ],
)
def test_wrong_arguments_are_named(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        bench.bench_ops(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(
        UserError, match="--device: torch sees no GPU, got 'cuda'; use --device cpu"
    ):
        bench.bench_ops("cuda")


def test_without_a_library_there_is_nothing_to_measure(monkeypatch, tmp_path):
    missing = library_state(tmp_path / "focus_lab_ops.so")
    monkeypatch.setattr(bench, "library_state", lambda: missing)
    with pytest.raises(CompiledOpError, match=r"is missing, .*; build it with `python csrc/build"):
        bench.bench_ops()


@pytest.mark.usefixtures("library")
def test_the_module_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "CASES", (TINY,))
    monkeypatch.setattr(bench, "peers", lambda device: [peer("zeros", lambda output: output * 0)])
    monkeypatch.setattr(bench, "copy_bandwidth", lambda device: 10.0)
    file = tmp_path / "ops.json"
    before = torch.get_num_threads()
    code = bench.main(["--rounds", "1", "--threads", "1", "--json", str(file)])
    assert code == 0
    assert torch.get_num_threads() == before
    result = json.loads(file.read_text())
    assert (result["bench"], result["threads"], result["copy_gb_s"]) == ("ops", 1, 10.0)
    assert result["library"]["cpu_level"]
    assert result["library"]["torch"]
    assert result["versions"]["torch"] == torch.__version__
    assert len(result["rows"]) == 2 * 3  # two dtypes, three directions
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["against_ms"] / row["ours_ms"])
        assert row["copy_share"] == pytest.approx(row["ours_gb_s"] / 10)
    said = capsys.readouterr()
    assert said.err.split("\n") == ["tiny, float32", "tiny, bfloat16", ""]
    assert said.out.startswith("case")
    assert "not timed: zeros: differs from the reference, output by 1 of its norm (" in said.out


@pytest.mark.usefixtures("library")
def test_a_run_that_is_cut_off_has_left_its_rows(tmp_path, monkeypatch):
    def cut_off(steps, device, rounds):
        measured.append(device)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return [[1.0], [2.0]]

    measured = []
    monkeypatch.setattr(bench, "CASES", (TINY,))
    monkeypatch.setattr(bench, "peers", lambda device: [])
    monkeypatch.setattr(bench, "copy_bandwidth", lambda device: 10.0)
    monkeypatch.setattr(bench, "interleaved", cut_off)
    file = tmp_path / "ops.json"
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--json", str(file)])
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["direction"], row["ratio"]) == ("forward", 2)
    assert row["copy_share"] == pytest.approx(row["ours_gb_s"] / 10)


def test_an_error_is_a_sentence_and_an_exit_code(capsys):
    assert bench.main(["--cases", "dnse"]) == 2
    assert capsys.readouterr().err.startswith("error: --cases: no such case")


@pytest.mark.usefixtures("library")
def test_the_command_prints_the_result_as_json(capsys, monkeypatch):
    pytest.importorskip("typer")
    from focus_lab import cli

    monkeypatch.setattr(bench, "CASES", (TINY,))
    monkeypatch.setattr(bench, "peers", lambda device: [])
    monkeypatch.setattr(bench, "copy_bandwidth", lambda device: 10.0)
    words = ["focus-lab", "bench", "ops", "--dtypes", "float32", "--rounds", "1", "--json"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    common = {"case", "dtype", "direction", "against", "ours_ms", "against_ms", "ratio"}
    assert len(rows) == 3
    assert all(common <= set(row) for row in rows)


@pytest.mark.gpu
@pytest.mark.usefixtures("library")
def test_a_gpu_is_timed_by_its_own_clock():
    result = bench.bench_ops("cuda", ["demo-decoder"], ["float32"], rounds=2)
    reference_rows = [row for row in result["rows"] if row["against"] == "reference"]
    assert [row["direction"] for row in reference_rows] == list(bench.DIRECTIONS)
    assert all(row["ours_ms"] > 0 for row in result["rows"])
    assert result["device"] == torch.cuda.get_device_name()
