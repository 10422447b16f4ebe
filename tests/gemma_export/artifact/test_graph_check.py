"""One .onnx file against its manifest: every reference, name, shape and number that could lie."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from artifact.tiny_folder import ALL, DATA, HIDDEN, MAIN, VOCAB, alter_graph, relist, write_tiny

from gemma_export.artifact.graph_check import check_graph
from gemma_export.artifact.verify import verify_folder
from gemma_export.errors import FolderError
from gemma_runtime.manifest import MANIFEST_FILE, read_manifest

T = onnx.TensorProto
Alter = Callable[[onnx.ModelProto], object]
LENGTH = 4 * VOCAB * HIDDEN


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid folder; read only."""
    return write_tiny(tmp_path_factory.mktemp("valid") / "out").directory


@pytest.fixture
def folder(valid: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(valid, tmp_path / "out")


def refused(folder: Path, file: str = MAIN) -> str:
    """The message of the refusal, which a correct size and hash must not hide."""
    with pytest.raises(FolderError) as raised:
        verify_folder(folder, hash_data=False)
    assert raised.value.exit_code == 3
    assert raised.value.message.startswith(file)
    assert "\n" not in raised.value.message
    assert raised.value.hint
    return raised.value.message


def tensor_of(model: onnx.ModelProto, name: str = "embedding") -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def value_of(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    return next(value for value in [*model.graph.input, *model.graph.output] if value.name == name)


def reference(key: str, value: str) -> Alter:
    """Sets one entry of the embedding's reference to the data file."""

    def alter(model: onnx.ModelProto) -> None:
        entry = next(entry for entry in tensor_of(model).external_data if entry.key == key)
        entry.value = value

    return alter


def both(*alters: Alter) -> Alter:
    def alter(model: onnx.ModelProto) -> None:
        for each in alters:
            each(model)

    return alter


def point_outside(tensor: onnx.TensorProto, location: str = "../../etc/passwd") -> onnx.TensorProto:
    """Makes any tensor an external one that leaves the folder."""
    tensor.data_location = T.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


# locations


@pytest.mark.parametrize(
    "location",
    [
        "../../etc/passwd",
        "../onnx/model.onnx_data",
        "/etc/passwd",
        "C:\\model.onnx_data",
        "./model.onnx_data",
        "onnx/model.onnx_data",
        "model.onnx_data/../model.onnx_data",
        "sub\\model.onnx_data",
        "MODEL.onnx_data",
        "model.onnx_data ",
        "model_all.onnx",
        "model.onnx",
        "config.json",
        "",
    ],
)
def test_a_location_other_than_the_data_file(folder: Path, location: str) -> None:
    alter_graph(folder, reference("location", location))
    found = refused(folder)
    assert found == (
        f"{MAIN}, tensor 'embedding': expected a location in the manifest (model.onnx_data), found {location!r}"
    )


def test_the_full_path_of_the_right_file_is_refused_too(folder: Path) -> None:
    alter_graph(folder, reference("location", str(folder / DATA)))
    assert "expected a location in the manifest (model.onnx_data)" in refused(folder)


def test_the_data_file_of_another_directory_is_not_this_graphs(folder: Path) -> None:
    manifest = read_manifest(folder)
    shutil.copy(folder / DATA, folder / "other.onnx_data")
    entry = next(entry for entry in manifest.files if entry.path == DATA)
    files = (*manifest.files, dataclasses.replace(entry, path="other.onnx_data"))
    graphs = tuple(dataclasses.replace(graph, data_files=(DATA, "other.onnx_data")) for graph in manifest.graphs)
    (folder / MANIFEST_FILE).write_text(dataclasses.replace(manifest, graphs=graphs, files=files).to_json(), "utf-8")
    verify_folder(folder)
    # beside the graph there is no file of this name
    alter_graph(folder, reference("location", "other.onnx_data"))
    assert "(model.onnx_data), found 'other.onnx_data'" in refused(folder)


# offsets and lengths


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize(
    "text", ["-64", "+64", " 64", "64 ", "1_000", "0x40", "6.4", "", "\u0663", "1e3", "9" * 20, "-9223372036854775808"]
)
def test_numbers_of_bytes_are_plain_digits(folder: Path, key: str, text: str) -> None:
    alter_graph(folder, reference(key, text))
    assert f"tensor 'embedding': expected a number of bytes as {key}, found {text!r}" in refused(folder)


def test_a_tensor_may_end_where_the_data_file_ends_and_not_later(folder: Path) -> None:
    size = (folder / DATA).stat().st_size
    alter_graph(folder, reference("offset", str(size - LENGTH)))
    verify_folder(folder, hash_data=False)
    alter_graph(folder, reference("offset", str(size - LENGTH + 1)))
    assert refused(folder).endswith(
        f"expected bytes inside model.onnx_data ({size} bytes), found {size - LENGTH + 1} to {size + 1}"
    )


@pytest.mark.parametrize("offset", [1 << 20, 1 << 62, 10**19 - 1])
def test_an_offset_beyond_the_end(folder: Path, offset: int) -> None:
    alter_graph(folder, reference("offset", str(offset)))
    assert f"found {offset} to {offset + LENGTH}" in refused(folder)


@pytest.mark.parametrize("length", [0, LENGTH - 4, LENGTH + 4, 1 << 62, 10**19 - 1])
def test_a_length_that_contradicts_the_dims(folder: Path, length: int) -> None:
    alter_graph(folder, reference("length", str(length)))
    assert refused(folder) == (
        f"{MAIN}, tensor 'embedding': expected {LENGTH} bytes for dims [{VOCAB}, {HIDDEN}], found length {length}"
    )


def set_dims(*dims: int, name: str = "embedding") -> Alter:
    def alter(model: onnx.ModelProto) -> None:
        tensor_of(model, name).dims[:] = dims

    return alter


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((VOCAB + 1, HIDDEN), f"expected {LENGTH + 124} bytes for dims [{VOCAB + 1}, {HIDDEN}], found length {LENGTH}"),
        ((VOCAB, HIDDEN - 1), "found length"),
        ((), "expected 4 bytes for dims [], found length"),
        ((0, HIDDEN), "expected 0 bytes"),
        ((-1, HIDDEN), f"expected dims between 0 and 2147483647, found [-1, {HIDDEN}]"),
        ((-VOCAB, -HIDDEN), "expected dims between 0 and"),
        ((1 << 31, 0), "expected dims between 0 and"),
        # in 64 bits the product would be LENGTH again
        ((1_980_339_940, 1_430_954, 8_137), "expected 92233720368547832480 bytes"),
    ],
)
def test_dims_that_do_not_match(folder: Path, dims: tuple[int, ...], message: str) -> None:
    alter_graph(folder, set_dims(*dims))
    assert message in refused(folder)


def test_dims_and_length_that_agree_on_too_much(folder: Path) -> None:
    alter_graph(folder, both(set_dims(VOCAB * 1000, HIDDEN), reference("length", str(LENGTH * 1000))))
    assert "expected bytes inside model.onnx_data" in refused(folder)


def set_type(data_type: int, name: str = "embedding") -> Alter:
    def alter(model: onnx.ModelProto) -> None:
        tensor_of(model, name).data_type = data_type

    return alter


@pytest.mark.parametrize(
    ("data_type", "message"),
    [
        (T.DOUBLE, f"expected {2 * LENGTH} bytes"),
        (T.FLOAT16, f"expected {LENGTH // 2} bytes"),
        (T.INT4, f"expected {LENGTH // 8} bytes"),
        (T.STRING, "expected a known element type, found number 8"),
        (T.UNDEFINED, "expected a known element type, found number 0"),
        (77, "expected a known element type, found number 77"),
    ],
)
def test_an_element_type_that_does_not_match(folder: Path, data_type: int, message: str) -> None:
    alter_graph(folder, set_type(data_type))
    assert message in refused(folder)


# keys of a reference


def repeat_location(model: onnx.ModelProto) -> None:
    tensor_of(model).external_data.add(key="location", value="../../etc/passwd")


def drop_length(model: onnx.ModelProto) -> None:
    del tensor_of(model).external_data[2]


def add_checksum(model: onnx.ModelProto) -> None:
    tensor_of(model).external_data.add(key="checksum", value="0")


def drop_all(model: onnx.ModelProto) -> None:
    del tensor_of(model).external_data[:]


@pytest.mark.parametrize(
    ("alter", "found"),
    [
        (repeat_location, "'location', 'offset', 'length', 'location'"),
        (drop_length, "'location', 'offset'"),
        (add_checksum, "'location', 'offset', 'length', 'checksum'"),
        (drop_all, ""),
    ],
)
def test_each_key_once(folder: Path, alter: Alter, found: str) -> None:
    alter_graph(folder, alter)
    assert refused(folder).endswith(f"expected location, offset and length once each, found {found}")


def replace_bytes(folder: Path, old: bytes, new: bytes) -> None:
    """Changes the file where the protobuf library would refuse to write such a text."""
    assert len(old) == len(new)
    content = (folder / MAIN).read_bytes()
    assert old in content
    (folder / MAIN).write_bytes(content.replace(old, new))
    relist(folder, MAIN)


def test_a_key_that_is_no_utf8(folder: Path) -> None:
    replace_bytes(folder, b"location", b"locatio\xff")
    assert r"found b'locatio\xff', 'offset', 'length'" in refused(folder)


def test_a_location_that_is_no_utf8(folder: Path) -> None:
    replace_bytes(folder, b"model.onnx_data", b"model.onnx_dat\xff")
    assert r"found b'model.onnx_dat\xff'" in refused(folder)


# tensors in other places than a graph's initializers


def a_nodes_constant(model: onnx.ModelProto) -> None:
    node = onnx.helper.make_node("Constant", [], ["c"], value=onnx.helper.make_tensor("inner", T.FLOAT, [1], [1.0]))
    point_outside(node.attribute[0].t)
    model.graph.node.append(node)


def a_nodes_constants(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Other", domain="test", output=["c"])
    attribute = node.attribute.add(name="values", type=onnx.AttributeProto.TENSORS)
    point_outside(attribute.tensors.add(name="inner", data_type=T.FLOAT, dims=[1]))


def a_nodes_sparse_constant(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Constant", output=["c"])
    attribute = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    point_outside(attribute.sparse_tensor.values).name = "inner"


def a_nodes_sparse_constants(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Other", domain="test", output=["c"])
    attribute = node.attribute.add(name="sparse", type=onnx.AttributeProto.SPARSE_TENSORS)
    sparse = attribute.sparse_tensors.add(values=onnx.helper.make_tensor("values", T.FLOAT, [1], [1.0]))
    point_outside(sparse.indices).name = "inner"


def a_sparse_initializer(model: onnx.ModelProto) -> None:
    point_outside(model.graph.sparse_initializer.add().values).name = "inner"


def branch(model: onnx.ModelProto) -> onnx.GraphProto:
    node = model.graph.node.add(op_type="If", output=["c"])
    return node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g


def a_branchs_constant(model: onnx.ModelProto) -> None:
    node = branch(model).node.add(op_type="Constant", output=["c"])
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    point_outside(attribute.t).name = "inner"


def a_functions_constant(model: onnx.ModelProto) -> None:
    node = model.functions.add(name="f", domain="test").node.add(op_type="Constant", output=["c"])
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    point_outside(attribute.t).name = "inner"


def a_functions_default(model: onnx.ModelProto) -> None:
    function = model.functions.add(name="f", domain="test")
    attribute = function.attribute_proto.add(name="value", type=onnx.AttributeProto.TENSOR)
    point_outside(attribute.t).name = "inner"


@pytest.mark.parametrize(
    "alter",
    [
        a_nodes_constant,
        a_nodes_constants,
        a_nodes_sparse_constant,
        a_nodes_sparse_constants,
        a_sparse_initializer,
        a_branchs_constant,
        a_functions_constant,
        a_functions_default,
    ],
)
def test_only_initializers_lie_in_data_files(folder: Path, alter: Alter) -> None:
    alter_graph(folder, alter)
    assert refused(folder) == (
        f"{MAIN}, tensor 'inner': only initializers may lie in a data file, found a node's constant"
    )


def a_branchs_initializer(model: onnx.ModelProto) -> None:
    point_outside(branch(model).initializer.add(name="inner", data_type=T.FLOAT, dims=[1]))


def an_initializer_of_several_branches(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Other", domain="test", output=["c"])
    attribute = node.attribute.add(name="branches", type=onnx.AttributeProto.GRAPHS)
    point_outside(attribute.graphs.add().initializer.add(name="inner", data_type=T.FLOAT, dims=[1]))


@pytest.mark.parametrize("alter", [a_branchs_initializer, an_initializer_of_several_branches])
def test_a_branchs_initializers_are_checked(folder: Path, alter: Alter) -> None:
    alter_graph(folder, alter)
    assert "tensor 'inner': expected a location in the manifest" in refused(folder)


# tensors inside the graph


@pytest.mark.parametrize("count", [HIDDEN - 1, HIDDEN + 1])
def test_bytes_inside_the_graph_match_the_dims(folder: Path, count: int) -> None:
    alter_graph(folder, set_dims(count, name="scale"))
    expected = f"expected {4 * count} bytes for dims [{count}], found {4 * HIDDEN}"
    assert refused(folder) == f"{MAIN}, tensor 'scale': {expected}"


def test_a_huge_tensor_inside_the_graph(folder: Path) -> None:
    alter_graph(folder, set_dims(1 << 30, 1 << 30, name="scale"))
    assert "found 124" in refused(folder)


def typed(model: onnx.ModelProto) -> None:
    tensor_of(model, "scale").CopyFrom(onnx.helper.make_tensor("scale", T.FLOAT, [HIDDEN], [1.0] * HIDDEN))


def test_typed_values_inside_the_graph(folder: Path) -> None:
    alter_graph(folder, typed)
    verify_folder(folder, hash_data=False)
    alter_graph(folder, both(typed, set_dims(1 << 30, name="scale")))
    assert f"dims [{1 << 30}] need {1 << 30} elements, found" in refused(folder)
    alter_graph(folder, both(typed, set_dims(-HIDDEN, name="scale")))
    assert "expected dims between 0 and" in refused(folder)


def test_a_tensor_inside_the_graph_names_no_file(folder: Path) -> None:
    def alter(model: onnx.ModelProto) -> None:
        tensor_of(model, "scale").external_data.add(key="location", value="/etc/passwd")

    alter_graph(folder, alter)
    assert refused(folder).endswith("expected no data file for a tensor inside the graph, found one")


# interface


def rename(old: str, new: str) -> Alter:
    def alter(model: onnx.ModelProto) -> None:
        value_of(model, old).name = new

    return alter


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (
            rename("past_key_values.0.key", "past_key"),
            "inputs differ from the manifest's: expected 4, found 4; first difference 'past_key_values.0.key'",
        ),
        (
            rename("input_ids", "ids"),
            "inputs differ from the manifest's: expected 4, found 4; first difference 'input_ids'",
        ),
        (
            rename("logits", "scores"),
            "outputs differ from the manifest's: expected 3, found 3; first difference 'logits'",
        ),
        (rename("present.0.value", "x"), "expected 3, found 3; first difference 'present.0.value'"),
        (lambda model: model.graph.input.pop(), "expected 4, found 3; first difference 'past_key_values.0.value'"),
        (lambda model: model.graph.input.add(name="num_logits"), "expected 4, found 5; first difference 'num_logits'"),
        (lambda model: model.graph.output.add(name="hidden"), "expected 3, found 4; first difference 'hidden'"),
        (
            lambda model: model.graph.input.append(value_of(model, "input_ids")),
            "inputs differ from the manifest's: expected 4, found 5; first difference 'input_ids'",
        ),
    ],
)
def test_names_of_inputs_and_outputs(folder: Path, alter: Alter, message: str) -> None:
    alter_graph(folder, alter)
    assert message in refused(folder)


def test_an_input_whose_name_is_no_utf8(folder: Path) -> None:
    replace_bytes(folder, b"attention_mask", b"attention_mas\xff")
    assert "first difference 'attention_mask'" in refused(folder)


def test_further_inputs_whose_names_are_no_utf8(folder: Path) -> None:
    alter_graph(folder, lambda model: [model.graph.input.add(name=name) for name in ("more_a", "more_b")])
    replace_bytes(folder, b"more_a", b"more_\xff")
    assert r"expected 4, found 6; first difference 'more_b'" in refused(folder)


def test_the_order_of_the_inputs_is_free(folder: Path) -> None:
    def alter(model: onnx.ModelProto) -> None:
        first = model.graph.input.pop(0)
        model.graph.input.append(first)

    alter_graph(folder, alter)
    verify_folder(folder, hash_data=False)


def dim(name: str, axis: int, **fields: object) -> Alter:
    def alter(model: onnx.ModelProto) -> None:
        target = value_of(model, name).type.tensor_type.shape.dim[axis]
        target.CopyFrom(onnx.TensorShapeProto.Dimension(**fields))

    return alter


def elements(name: str, number: int) -> Alter:
    def alter(model: onnx.ModelProto) -> None:
        value_of(model, name).type.tensor_type.elem_type = number

    return alter


def drop_dim(name: str) -> Alter:
    return lambda model: value_of(model, name).type.tensor_type.shape.dim.pop()


PAST, PRESENT = "past_key_values.0.key", "present.0.value"
SHAPE = "expected float32 ['batch_size', 2, 'past_sequence_length', 5], found "


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (dim(PAST, 1, dim_value=3), f"{PAST}: {SHAPE}FLOAT ['batch_size', 3, 'past_sequence_length', 5]"),
        (dim(PAST, 0, dim_value=1), f"{PAST}: {SHAPE}FLOAT [1, 2, 'past_sequence_length', 5]"),
        (dim(PAST, 2, dim_param="past"), f"{PAST}: {SHAPE}FLOAT ['batch_size', 2, 'past', 5]"),
        (dim(PAST, 3), f"{PAST}: {SHAPE}FLOAT ['batch_size', 2, 'past_sequence_length', '']"),
        (drop_dim(PAST), f"{PAST}: {SHAPE}FLOAT ['batch_size', 2, 'past_sequence_length']"),
        (dim(PRESENT, 3, dim_value=6), f"{PRESENT}: {SHAPE}FLOAT ['batch_size', 2, 'total_sequence_length', 6]"),
        (dim(PRESENT, 1, dim_param="heads"), f"{PRESENT}: {SHAPE}"),
        (drop_dim(PRESENT), f"{PRESENT}: {SHAPE}FLOAT ['batch_size', 2, 'total_sequence_length']"),
        (elements(PAST, T.FLOAT16), f"{PAST}: {SHAPE}FLOAT16 ['batch_size', 2, 'past_sequence_length', 5]"),
        (elements(PRESENT, T.INT8), f"{PRESENT}: {SHAPE}INT8"),
        (elements(PAST, 99), f"{PAST}: {SHAPE}element type 99"),
        (lambda model: value_of(model, PAST).ClearField("type"), f"{PAST}: {SHAPE}UNDEFINED []"),
    ],
)
def test_dtype_and_shape_of_the_state(folder: Path, alter: Alter, message: str) -> None:
    alter_graph(folder, alter)
    assert message in refused(folder)


@pytest.mark.parametrize(
    "alter", [dim(PRESENT, 2, dim_param="anything"), dim(PRESENT, 2, dim_value=7), dim(PRESENT, 0)]
)
def test_an_outputs_symbols_are_free(folder: Path, alter: Alter) -> None:
    alter_graph(folder, alter)
    verify_folder(folder, hash_data=False)


# opset and graph as a whole


def opsets(*pairs: tuple[str, int]) -> Alter:
    def alter(model: onnx.ModelProto) -> None:
        del model.opset_import[:]
        model.opset_import.extend(onnx.helper.make_opsetid(*pair) for pair in pairs)

    return alter


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ([("", 22)], "[22]"),
        ([("ai.onnx", 24)], "[24]"),
        ([], "[]"),
        ([("com.microsoft", 23)], "[]"),
        ([("", 23), ("ai.onnx", 21)], "[23, 21]"),
    ],
)
def test_another_opset(folder: Path, pairs: list[tuple[str, int]], found: str) -> None:
    alter_graph(folder, opsets(*pairs))
    assert refused(folder) == f"{MAIN}: expected opset 23, found {found}"


def test_further_domains_are_free(folder: Path) -> None:
    alter_graph(folder, opsets(("ai.onnx", 23), ("com.microsoft", 1)))
    verify_folder(folder, hash_data=False)


@pytest.mark.parametrize("field", ["node", "output"])
def test_an_empty_graph(folder: Path, field: str) -> None:
    alter_graph(folder, lambda model: model.graph.ClearField(field))
    assert refused(folder) == f"{MAIN}: expected a graph with nodes and outputs, found an empty one"


def test_a_graph_too_large_to_be_one_is_not_read(folder: Path) -> None:
    manifest = read_manifest(folder)
    large = (1 << 28) + 1
    files = tuple(dataclasses.replace(file, size=large) if file.path == MAIN else file for file in manifest.files)
    (folder / MAIN).unlink()
    with pytest.raises(FolderError) as raised:
        check_graph(folder, dataclasses.replace(manifest, files=files), manifest.graphs[0])
    assert raised.value.message == f"{MAIN}: expected at most 268435456 bytes of graph, found {large}"


def test_a_graph_that_is_gone_by_then(folder: Path) -> None:
    manifest = read_manifest(folder)
    (folder / ALL).unlink()
    with pytest.raises(FolderError, match=r"onnx/model_all\.onnx cannot be read: No such file"):
        check_graph(folder, manifest, manifest.graphs[1])


def test_references_are_counted(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert [check_graph(folder, manifest, graph) for graph in manifest.graphs] == [4, 4]


@pytest.mark.parametrize("change", [{"vocab_size": 601}, {"vocab_size": 3}])
def test_a_manifest_with_another_vocabulary(folder: Path, change: dict[str, int]) -> None:
    manifest = dataclasses.replace(read_manifest(folder), **change)
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    assert refused(folder).startswith(f"{MAIN}, logits: expected last positions of {change['vocab_size']} float32")


def test_a_manifest_with_the_graphs_exchanged(folder: Path) -> None:
    made = read_manifest(folder)
    first, second = made.graphs
    swapped = (dataclasses.replace(first, file=second.file), dataclasses.replace(second, file=first.file))
    text = dataclasses.replace(made, graphs=swapped).to_json()
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
    assert "logits: expected last positions" in refused(folder, ALL)
