"""Which initializers share bytes, and how graphs refer to them."""

from __future__ import annotations

import io

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from artifact.tiny_folder import LazyWeight, tiny_model, tiny_weights

from gemma_export.artifact.weight_store import WeightStore, write_tensor
from gemma_export.errors import InternalError


def model_of(*tensors: ir.TensorProtocol) -> ir.Model:
    """A model whose nodes pass each tensor through; initializers are called t0, t1, ..."""
    values = [
        ir.val(f"t{index}", tensor.dtype, tensor.shape, const_value=tensor) for index, tensor in enumerate(tensors)
    ]
    nodes = [ir.node("Identity", [value]) for value in values]
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([], outputs, nodes=nodes, initializers=values, opset_imports={"": 23}, name="tensors")
    return ir.Model(graph, ir_version=10)


def floats(*shape: int, start: float = 0) -> np.ndarray:
    return np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)


def stored(store: WeightStore, model: ir.Model, location: str = "data") -> dict[str, onnx.TensorProto]:
    proto = onnx.load_model_from_string(store.serialize(model, location))
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def external(tensor: onnx.TensorProto) -> dict[str, str]:
    assert tensor.data_location == onnx.TensorProto.EXTERNAL
    return {entry.key: entry.value for entry in tensor.external_data}


def written(tensor: ir.TensorProtocol) -> bytes:
    file = io.BytesIO()
    write_tensor(tensor, file)
    return file.getvalue()


def test_one_tensor_object_is_one_range() -> None:
    shared, own = ir.tensor(floats(20, 20)), ir.tensor(floats(20, 20))
    first, second = model_of(shared), model_of(own, shared)
    store = WeightStore([first, second])
    # equal values in two objects are two weights: nobody reads them to find out
    assert [(entry.name, entry.offset, entry.nbytes) for entry in store.plan.ranges] == [
        ("t0", 0, 1600),
        ("t0", 1600, 1600),
    ]
    assert [store.tensor(entry) for entry in store.plan.ranges] == [shared, own]
    expected = {"location": "data", "offset": "0", "length": "1600"}
    assert external(stored(store, first)["t0"]) == expected
    assert external(stored(store, second)["t1"]) == expected
    assert external(stored(store, second)["t0"]) == {**expected, "offset": "1600"}


def test_one_weight_under_two_shapes_is_one_range() -> None:
    def weight() -> np.ndarray:
        return floats(600)

    model = model_of(LazyWeight(weight, (20, 30)), LazyWeight(weight, (600,)))
    store = WeightStore([model])
    assert store.plan.size == 2432  # 2400 bytes in whole cache lines
    tensors = stored(store, model)
    assert external(tensors["t0"]) == external(tensors["t1"])
    assert (list(tensors["t0"].dims), list(tensors["t1"].dims)) == ([20, 30], [600])


def test_one_weight_with_two_sizes_is_refused() -> None:
    def weight() -> np.ndarray:
        return floats(600)

    model = model_of(LazyWeight(weight, (600,)), LazyWeight(weight, (599,)))
    with pytest.raises(
        InternalError, match="t0 and t1 share one weight, expected equal sizes, found 2400 and 2396 bytes"
    ):
        WeightStore([model])


def test_the_first_model_leads() -> None:
    a, b, c = (ir.tensor(floats(300, start=start)) for start in range(3))
    store = WeightStore([model_of(b), model_of(a, b, c)])
    assert [store.tensor(entry) for entry in store.plan.ranges] == [b, a, c]


def test_small_tensors_stay_inside() -> None:
    small, scalar, empty = ir.tensor(floats(255)), ir.tensor(np.float32(2.5)), ir.tensor(floats(0, 3))
    limit = ir.tensor(floats(256))
    model = model_of(small, scalar, empty, limit)
    store = WeightStore([model])
    tensors = stored(store, model)
    assert store.plan.size == 1024
    assert external(tensors["t3"])["length"] == "1024"
    for name, tensor in (("t0", small), ("t1", scalar), ("t2", empty)):
        assert tensors[name].data_location == onnx.TensorProto.DEFAULT
        assert list(tensors[name].dims) == list(tensor.shape.numpy())
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensors[name]), tensor.numpy())


def test_texts_stay_inside_whatever_their_size() -> None:
    texts = ir.StringTensor(np.array([b"a" * 2000, b"b"], dtype=object), shape=ir.Shape([2]))
    model = model_of(texts)
    store = WeightStore([model])
    assert store.plan.ranges == ()
    assert list(stored(store, model)["t0"].string_data) == [b"a" * 2000, b"b"]


def test_a_branchs_initializers_are_stored_too() -> None:
    inner_tensor = ir.tensor(floats(400))
    branches = []
    for name in ("then", "else"):
        inner = ir.val(f"{name}_weight", ir.DataType.FLOAT, [400], const_value=inner_tensor)
        node = ir.node("Identity", [inner])
        branches.append(ir.Graph([], [node.outputs[0]], nodes=[node], initializers=[inner], name=name))
    condition = ir.val("condition", ir.DataType.BOOL, [])
    choice = ir.node("If", [condition], {"then_branch": branches[0], "else_branch": branches[1]})
    graph = ir.Graph([condition], [choice.outputs[0]], nodes=[choice], opset_imports={"": 23}, name="main")
    model = ir.Model(graph, ir_version=10)
    store = WeightStore([model])
    assert [entry.nbytes for entry in store.plan.ranges] == [1600]
    proto = onnx.load_model_from_string(store.serialize(model, "data"))
    for attribute in proto.graph.node[0].attribute:
        [tensor] = attribute.g.initializer
        assert external(tensor) == {"location": "data", "offset": "0", "length": "1600"}


def test_serializing_leaves_the_model_alone_and_repeats_itself() -> None:
    model = tiny_model(tiny_weights(), last=True)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    store = WeightStore([model])
    first = store.serialize(model, "data")
    after = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert store.serialize(model, "data") == first
    assert len(first) < 4096


def test_no_weight_is_computed_for_the_plan_or_the_graph() -> None:
    def never() -> np.ndarray:
        raise AssertionError("nobody asked for the bytes")

    model = model_of(LazyWeight(never, (1000, 1000)))
    store = WeightStore([model])
    assert external(stored(store, model)["t0"])["length"] == "4000000"


def test_an_unbound_initializer_is_refused() -> None:
    model = model_of(ir.tensor(floats(3)))
    model.graph.initializers["t0"].const_value = None
    with pytest.raises(InternalError, match="initializer t0 has no value to write"):
        WeightStore([model])


def test_four_bit_weights_are_packed() -> None:
    # 3001 elements, an odd number: the last byte is half full
    array = np.arange(3001).astype(ml_dtypes.uint4)
    tensor = ir.tensor(array)
    model = model_of(tensor)
    store = WeightStore([model])
    assert external(stored(store, model)["t0"])["length"] == "1501"
    low, high = np.arange(3001) % 16, np.append(np.arange(1, 3001) % 16, 0)
    assert written(tensor) == (low | high << 4)[::2].astype(np.uint8).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64])
def test_a_strided_array_is_written_in_order(dtype: type) -> None:
    array = np.arange(600).reshape(20, 30).astype(dtype)
    assert written(ir.tensor(array.T)) == np.ascontiguousarray(array.T).tobytes()
    assert written(ir.tensor(array[:, ::3])) == np.ascontiguousarray(array[:, ::3]).tobytes()


def test_a_strided_array_keeps_its_values_inside_the_graph() -> None:
    array = floats(5, 7)
    model = model_of(ir.tensor(array.T))
    [tensor] = stored(WeightStore([model]), model).values()
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), array.T)


def test_a_tensor_that_streams_is_never_asked_for_all_its_bytes() -> None:
    class Streaming(LazyWeight):
        def tobytes(self) -> bytes:
            raise AssertionError("all at once")

        def tofile(self, file: io.BytesIO) -> None:
            for chunk in range(3):
                file.write(bytes([chunk]) * 4)

    assert written(Streaming(lambda: floats(3), (3,))) == b"\0\0\0\0\1\1\1\1\2\2\2\2"


def test_a_tensor_need_not_stream() -> None:
    class Bare:
        def tobytes(self) -> bytes:
            return b"1234"

    assert written(Bare()) == b"1234"  # type: ignore[arg-type]
