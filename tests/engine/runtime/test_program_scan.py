"""A .pt2 that could do more than compute is refused before PyTorch sees it."""

from __future__ import annotations

import copy
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.runtime.program_scan import MAX_BYTES, check_program

SPEC = json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": []}])


def graph() -> dict[str, Any]:
    node = {
        "target": "torch.ops.aten.relu.default",
        "inputs": [{"name": "self", "arg": {"as_tensor": {"name": "x"}}, "kind": 1}],
        "outputs": [{"as_tensor": {"name": "relu"}}],
        "metadata": {},
    }
    value = {
        "sizes": [{"as_expr": {"expr_str": "Mul(Integer(8), Symbol('s50', positive=True, integer=True))"}}]
    }
    call = {"fqn": "", "signature": {"inputs": [], "outputs": [], "in_spec": SPEC, "out_spec": SPEC}}
    return {
        "graph_module": {
            "graph": {"nodes": [node], "tensor_values": {"x": value}},
            "module_call_graph": [call],
        },
        "range_constraints": {
            "s50": {"min_val": 4, "max_val": 8192},
            "8*s50": {"min_val": 32, "max_val": 65536},
        },
        "guards_code": [],
        "torch_version": "2.13.0+cpu",
    }


def payload(name: str, **changes: Any) -> dict[str, Any]:
    return {"config": {"w": {"path_name": name, "use_pickle": False, "tensor_meta": {}, **changes}}}


def files(model: dict[str, Any] | None = None) -> dict[str, bytes]:
    return {
        "p/archive_format": b"pt2",
        "p/archive_version": b"0",
        "p/byteorder": b"little",
        "p/.data/version": b"6\n",
        "p/models/model.json": json.dumps(model or graph()).encode(),
        "p/data/weights/model_weights_config.json": json.dumps(payload("weight_0")).encode(),
        "p/data/constants/model_constants_config.json": json.dumps({"config": {}}).encode(),
        "p/data/sample_inputs/model.pt": b"",
    }


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in entries.items():
            z.writestr(name, data)
    return out.getvalue()


def test_what_the_exporter_writes_is_let_through() -> None:
    check_program(archive(files()))


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("p/data/sample_inputs/model.pt", "example inputs, which are a pickle"),
        ("p/data/weights/model.pt", "may be a pickle"),
        ("p/data/weights/weight_0", "may be a pickle"),
        ("p/data/constants/custom_obj_0", "may be a pickle"),
        ("p/data/constants/opaque_obj_0", "may be a pickle"),
        ("p/data/aotinductor/model/model.so", "native code"),
        ("p/extra/run.py", "may be a pickle or native code"),
        ("p/../../home/user/.bashrc", "may be a pickle"),
        ("q/archive_format", "not that of one model"),
        ("p/models/other.json", "may be a pickle"),
    ],
)
def test_entries_that_could_run_or_escape_are_refused(entry: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as error:
        check_program(archive({**files(), entry: pickle.dumps(Payload())}))
    assert "\n" not in str(error.value)


def edit(change: Callable[[dict[str, Any]], Any]) -> bytes:
    model = copy.deepcopy(graph())
    change(model)
    return archive(files(model))


def node(model: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = model["graph_module"]["graph"]["nodes"][0]
    return found


def set_expression(text: str) -> Callable[[dict[str, Any]], None]:
    def change(model: dict[str, Any]) -> None:
        model["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["guards_code"].append("__import__('os').system('true')"),
            "guards, which are Python code",
        ),
        (set_expression("__import__('os').system('true')"), "not a shape expression"),
        (set_expression("s50.__class__"), "not a shape expression"),
        (set_expression("9**9**9**9"), "not a shape expression"),
        (set_expression("Pow(Integer(9), Integer(999999999))"), "not a shape expression"),
        (set_expression("Symbol('s50', positive=open('/etc/passwd'))"), "not a shape expression"),
        (set_expression("1" * 3000 + "!"), "not a shape expression"),
        (lambda m: m["range_constraints"].update({"exec('1')": {}}), "not a shape expression"),
        (lambda m: node(m).update(target="torch.load"), "operator 'torch.load'"),
        (lambda m: node(m).update(target="torch.hub.load"), "not one that a network needs"),
        (lambda m: node(m).update(target="_operator.attrgetter"), "not one that a network needs"),
        (lambda m: node(m).update(target="torch.ops.aten.relu.default.__globals__"), "operator"),
        (lambda m: node(m).update(target="torch.ops.profiler._record_function_enter.default"), "operator"),
        (lambda m: node(m).update(name="x\nimport os"), "is not a name"),
        (lambda m: node(m)["metadata"].update(stack_trace='File "/home/user/x.py"'), "is not a name"),
        (
            lambda m: m["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec=SPEC.replace("builtins.tuple", "os.PathLike")
            ),
            "of the type os.PathLike",
        ),
        (lambda m: m.pop("guards_code"), "damaged"),
    ],
)
def test_graphs_that_could_run_code_are_refused(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message) as error:
        check_program(edit(change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config", [payload("weight_0", use_pickle=True), payload("../weight_0"), payload("custom_obj_0")]
)
def test_pickled_or_misplaced_weights_are_refused(config: dict[str, Any]) -> None:
    entries = {**files(), "p/data/weights/model_weights_config.json": json.dumps(config).encode()}
    with pytest.raises(ArtifactError, match="a pickle or lies elsewhere"):
        check_program(archive(entries))


def test_truncated_compressed_and_oversized_programs_are_refused() -> None:
    whole = archive(files())
    for damaged in (b"", b"PK", whole[: len(whole) // 2], b"\0" * 100):
        with pytest.raises(ArtifactError, match="damaged"):
            check_program(damaged)
    with pytest.raises(ArtifactError, match="compressed"):
        check_program(archive(files(), zipfile.ZIP_DEFLATED))
    with pytest.raises(ArtifactError, match="more than"):
        check_program(b"\0" * (MAX_BYTES + 1))
    with pytest.raises(ArtifactError, match="too many"):
        check_program(archive({**files(), **{f"p/data/constants/tensor_{i}": b"" for i in range(600)}}))
    deep = files()
    deep["p/models/model.json"] = b"[" * 100_000
    with pytest.raises(ArtifactError, match="damaged"):
        check_program(archive(deep))
