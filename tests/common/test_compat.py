"""Whether what is private in torch, torchmetrics and Python is there, and still means what it meant."""

import ast
import copy
import inspect
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lit_prune.common import _compat
from testing import house
from tests.toys import LIGHTNING_AVERAGES

PACKAGES = {"lit_prune", "__future__"}
# Attributes of every module, older than all that is public about them.
TORCHS_OWN = {"_modules", "_parameters", "_buffers"}


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")


def _imports(tree):
    """Each name that is imported from a foreign package, in full."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _private_imports(tree):
    names = (name.split(".") for name in _imports(tree))
    return {".".join(parts) for parts in names if parts[0] not in PACKAGES and any(map(_is_private, parts))}


def _private_attributes(tree):
    """Attributes of anything that the file has not set or defined itself."""
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    of_self = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
        if isinstance(node.ctx, ast.Store)
    }
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_private(node.attr)}
    return read - own - of_self - TORCHS_OWN


def _overridden(kind):
    """Private attributes of a class that one of its foreign bases has, too."""
    foreign = [base for base in kind.__mro__ if not base.__module__.startswith(("lit_prune", "typing", "abc"))]
    mine = {name for name in vars(kind) if _is_private(name)}
    return {name for name in mine if any(name in vars(base) for base in foreign)} - {"_abc_impl"}


FILES = {name: path for name, path in house.modules().items() if not name.endswith("._compat")}


@pytest.mark.parametrize("name", FILES)
def test_nothing_private_is_used_outside_compat(name):
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    assert _private_imports(tree) == set()
    # `strategy._lit_prune_hooks` is ours, on an object of theirs.
    assert {each for each in _private_attributes(tree) if not each.startswith("_lit_prune")} == set()


_MODULES = [name for name in FILES if not name.endswith("__main__")]
if not LIGHTNING_AVERAGES:
    _MODULES.remove("lit_prune.yolo.moving_average")


@pytest.mark.parametrize("name", _MODULES)
def test_no_private_method_is_overridden_outside_compat(name):
    module = __import__(name, fromlist=["_"])
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == name]
    # scikit-learn itself adds the one to every transformer, torch the other to every autograd function.
    theirs = {"_sklearn_auto_wrap_output_keys", "_backward_cls"}
    assert {each for kind in kinds for each in _overridden(kind)} <= theirs


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from torch.nn.modules.conv import _ConvNd", {"torch.nn.modules.conv._ConvNd"}),
        ("from torch.utils._pytree import tree_map", {"torch.utils._pytree.tree_map"}),
        ("import torch._dynamo", {"torch._dynamo"}),
        ("def f():\n    from torch import _C", {"torch._C"}),
        ("from lit_prune.common._compat import ConvNd\nfrom torch import nn", set()),
    ],
)
def test_a_private_import_is_seen(source, found):
    assert _private_imports(ast.parse(source)) == found


def test_a_private_attribute_is_seen():
    source = "self._own = 1\nself._own\nmodule._parameters\nfunc._schema\ndef _mine(): ...\nx._mine"
    assert _private_attributes(ast.parse(source)) == {"_schema"}


def test_bases_of_layers():
    assert all(issubclass(getattr(nn, f"Conv{n}d"), _compat.ConvNd) for n in "123")
    assert all(issubclass(getattr(nn, f"ConvTranspose{n}d"), _compat.ConvTransposeNd) for n in "123")
    assert issubclass(_compat.ConvTransposeNd, _compat.ConvNd)
    assert not issubclass(nn.Conv2d, _compat.ConvTransposeNd)
    batch = [getattr(nn, f"{kind}Norm{n}d") for kind in ("Batch", "Instance") for n in "123"]
    assert all(issubclass(kind, _compat.NormBase) for kind in (*batch, nn.SyncBatchNorm))
    assert not issubclass(nn.GroupNorm, _compat.NormBase)


def test_nested_arguments():
    nested = {"a": (torch.ones(1), [2]), "b": None}
    assert _compat.tree_flatten(nested)[0] == [torch.ones(1), 2, None]
    assert _compat.tree_map_only(int, lambda value: value + 1, nested)["a"][1] == [3]


def test_hooks_lie_where_they_are_looked_for():
    module = nn.Linear(1, 1)
    registered = [
        module.register_forward_hook(print),
        module.register_forward_pre_hook(print),
        module.register_full_backward_hook(print),
        module.register_full_backward_pre_hook(print),
        module.register_state_dict_post_hook(lambda *_: None),
        module.register_state_dict_pre_hook(print),
        module.register_load_state_dict_pre_hook(print),
    ]
    tables = [vars(module)[name] for name in (*_compat.RUN_HOOKS, *_compat.STATE_HOOKS)]
    assert sorted(len(table) for table in tables) == [1] * len(registered)
    # What torch has beside them runs after loading, or says how a hook is called.
    assert {name for name in vars(module) if name.endswith("_hooks")} == {
        *_compat.RUN_HOOKS,
        *_compat.STATE_HOOKS,
        "_load_state_dict_post_hooks",
    }
    _compat.clear_hooks_(module)
    assert not any(tables)


def test_forward_hooks_can_be_removed():
    module = nn.Linear(1, 1)
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append("before"))
    module.register_forward_hook(stays := lambda *_: calls.append("stays"))
    module.register_forward_hook(goes := lambda *_: calls.append("goes"), always_call=True)
    assert _compat.remove_forward_hooks_(module, lambda hook: hook is goes) == [goes]
    module(torch.ones(1, 1))
    assert calls == ["before", "stays"]
    assert _compat.remove_forward_hooks_(copy.deepcopy(module), lambda hook: hook is stays) == [stays]


def test_hooks_before_loading_can_be_reordered():
    module, order = nn.Linear(1, 1), []
    module.register_load_state_dict_pre_hook(lambda *_: order.append("first"))
    last = module.register_load_state_dict_pre_hook(lambda *_: order.append("last"))
    _compat.load_hooks(module).move_to_end(last.id, last=False)
    module.load_state_dict(module.state_dict())
    assert order == ["last", "first"]


def test_compiled_modules():
    assert not _compat.is_compiled(nn.Linear)
    network = nn.Linear(1, 1)
    compiled = torch.compile(network)
    assert _compat.compiler_is_loaded()
    assert _compat.is_compiled(type(compiled))
    assert getattr(compiled, _compat.COMPILED) is network
    assert next(iter(compiled.state_dict())).startswith(f"{_compat.COMPILED}.")
    network.compile()
    assert vars(network)[_compat.COMPILED_CALL] is not None


def test_extra_state_has_its_name():
    class Extra(nn.Module):
        def get_extra_state(self):
            return "anything"

    assert list(nn.Sequential(Extra()).state_dict()) == [f"0.{_compat.EXTRA_STATE}"]


def test_operations_pass_a_mode_and_can_be_kept_from_it():
    seen = []

    class Mode(_compat.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    tensor = torch.ones(1)
    with Mode():
        assert tensor.item() == 1
        with _compat.without_dispatch():
            assert tensor.item() == 1
    assert seen == [_compat.ITEM]


def test_a_mode_does_not_load_the_compiler():
    # The file alone, as `lit_prune` imports Lightning, and that may import the compiler.
    code = (
        f"import torch, runpy; compat = runpy.run_path({_compat.__file__!r})\n"
        "class Mode(compat['DispatchMode']):\n"
        "    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return func(*args, **(kwargs or {}))\n"
        "with Mode(): torch.ones(1) + 1\n"
        "assert not compat['compiler_is_loaded']()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_operators_have_a_schema():
    schema = _compat.schema_of(torch.ops.aten.add_.Tensor)
    assert schema.name == "aten::add_"
    names = [(each.name, each.default_value) for each in schema.arguments]
    assert names == [("self", None), ("other", None), ("alpha", 1)]
    assert [each.alias_info is not None and each.alias_info.is_write for each in schema.arguments] == [
        True,
        False,
        False,
    ]
    assert [each.alias_info is None for each in schema.returns] == [False]


def test_views_have_the_memory_of_their_tensor():
    tensor, other = (torch.empty(4, device="meta") for _ in range(2))
    assert _compat.memory_of(tensor) == _compat.memory_of(tensor[1:].view(3, 1))
    assert _compat.memory_of(tensor) != _compat.memory_of(other)
    # Were it not so, the public way would do.
    assert tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_one_kernel_for_an_average():
    averages = [torch.zeros(2), torch.ones(1)]
    _compat.lerp_all_(averages, [torch.ones(2), torch.ones(1)], 0.25)
    assert [each.tolist() for each in averages] == [[0.25, 0.25], [1.0]]


def test_ddps_hooks_can_be_asked_for(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapper = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))
        assert wrapper._comm_hooks == []
        wrapper.register_comm_hook(state := object(), hook := _compressed)
        assert _compat.comm_hooks(wrapper) == [(hook, state)]
    finally:
        dist.destroy_process_group()
    assert _compat.comm_hooks(nn.Linear(1, 1)) == []


def _compressed(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    raise NotImplementedError


def test_slots_of_classes():
    class Slotted(nn.Module):
        __slots__ = ("value",)

    assert _compat.has_slots(Slotted)
    assert not _compat.has_slots(nn.Module)


def test_updates_of_a_metric_count():
    metrics = pytest.importorskip("torchmetrics")
    one, other = metrics.SumMetric(), metrics.SumMetric()
    one.update(1.0)
    one.update(1.0)
    _compat.take_count_(other, one)
    assert other.update_count == 2
