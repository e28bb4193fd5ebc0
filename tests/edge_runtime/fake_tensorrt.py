"""A stand-in for the `tensorrt` module, for versions that cannot be installed where the tests run.

Names, argument names and defaults follow NVIDIA's Python API documentation of 10.3 and 11.0 (Builder, BuilderConfig,
OnnxParser, Runtime, ICudaEngine, IExecutionContext, ITimingCache, ILogger, IProgressMonitor) and the page "Removed
Python APIs and Replacements" of 11: what a version does not have is absent here too. Networks are run by onnxruntime
on the CPU, in memory that `FakeCuda` hands out.
"""

import enum
import hashlib
import json
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime

MAGIC = b"FAKE-ENGINE"


class FakeCuda:
    """Device memory in a dictionary, with the interface of `trt_cuda.Cuda`; counts what is open."""

    opened = 0

    def __init__(self, name="Orin", compute_capability="8.7"):
        self.gpu = SimpleNamespace(name=name, compute_capability=compute_capability)
        self.memory, self.stream, self._queue, self.closed, self.current = {}, 77, [], False, 0
        FakeCuda.opened += 1

    def make_current(self):
        self.current += 1

    def allocate(self, size):
        address = 0x1000 * (len(self.memory) + 1)
        self.memory[address] = bytearray(size)
        return address

    def upload(self, address, array):
        assert array.flags.c_contiguous
        self._queue.append(lambda: self.memory[address].__setitem__(slice(None), array.tobytes()))
        self.flush()

    def download(self, array, address):
        def copy():
            array[...] = np.frombuffer(bytes(self.memory[address]), array.dtype).reshape(array.shape)

        self._queue.append(copy)

    def flush(self):
        while self._queue:
            self._queue.pop(0)()

    def synchronise(self):
        self.flush()

    def close(self):
        if not self.closed:
            self.closed = True
            FakeCuda.opened -= 1


def make_tensorrt(version, machine):
    """A module `tensorrt` of that version. `machine` (a namespace) holds `cuda`: the FakeCuda whose memory is used."""
    major = int(version.split(".")[0])
    module = ModuleType("tensorrt")
    module.__version__ = version
    module.calls = []

    class DataType(enum.Enum):
        FLOAT, HALF, INT8, INT32, BOOL, UINT8, INT64 = range(7)

    class TensorIOMode(enum.Enum):
        NONE, INPUT, OUTPUT = range(3)

    class MemoryPoolType(enum.Enum):
        WORKSPACE, DLA_MANAGED_SRAM, DLA_LOCAL_DRAM, DLA_GLOBAL_DRAM, TACTIC_DRAM = range(5)

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        if major == 10:
            EXPLICIT_BATCH = 0
        STRONGLY_TYPED = 1

    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
        INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

        def __init__(self):
            self.initialised = True

    class IProgressMonitor:
        def __init__(self):
            self.initialised = True

    class HostMemory:
        """IHostMemory: read through the buffer protocol."""

        def __init__(self, data):
            self._data = data

        def __buffer__(self, flags):
            return memoryview(self._data)

        def __bytes__(self):
            return self._data

    class ITimingCache:
        def __init__(self, data):
            self.data = data

        def serialize(self):
            return HostMemory(self.data)

    class IBuilderConfig:
        __slots__ = ("_cache", "_monitor", "builder_optimization_level", "pools")

        def __init__(self):
            self._cache, self._monitor, self.pools, self.builder_optimization_level = None, None, {}, 3

        def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
            assert isinstance(pool, MemoryPoolType)
            self.pools[pool] = pool_size

        def create_timing_cache(self, serialized_timing_cache: bytes):
            return ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            if cache.data and not ignore_mismatch and not cache.data.startswith(version.encode()):
                return False
            self._cache = cache
            return True

        def get_timing_cache(self):
            return self._cache

        @property
        def progress_monitor(self):
            return self._monitor

        @progress_monitor.setter
        def progress_monitor(self, monitor):
            assert isinstance(monitor, IProgressMonitor)
            assert monitor.initialised
            self._monitor = monitor

    class INetworkDefinition:
        def __init__(self, strongly_typed):
            self.strongly_typed, self.onnx = strongly_typed, None

    class ParserError:
        def __init__(self, text):
            self._text = text

        def desc(self):
            return self._text

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: ILogger):
            assert logger.initialised
            self._network, self._errors = network, []

        def parse(self, model: bytes, path: str | None = None) -> bool:
            assert path is None
            graph = onnx.load_model_from_string(model).graph
            unsigned = [t.name for t in graph.initializer if t.data_type == onnx.TensorProto.UINT8]
            if unsigned:
                self._errors = [ParserError(f"In node 0: Assertion failed: zero point of {unsigned[0]} is UINT8")]
                return False
            self._network.onnx = model
            return True

        @property
        def num_errors(self):
            return len(self._errors)

        def get_error(self, index: int):
            return self._errors[index]

    class Builder:
        def __init__(self, logger: ILogger):
            assert logger.initialised
            self._logger = logger

        def create_network(self, flags: int = 0):
            module.calls.append(("create_network", flags))
            typed = major >= 11 or bool(flags >> int(NetworkDefinitionCreationFlag.STRONGLY_TYPED) & 1)
            return INetworkDefinition(typed)

        def create_builder_config(self):
            return IBuilderConfig()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig):
            module.calls.append(("build", config.builder_optimization_level, dict(config.pools), config._cache.data))
            assert network.strongly_typed
            if module.fail_build:
                self._logger.log(Severity.ERROR, "Error Code 10: could not find any implementation for node Conv_0")
                return None
            if config._monitor is not None:
                config._monitor.phase_start("Building Engine", None, 2)
                config._monitor.phase_start("Timing", "Building Engine", 1)
                assert config._monitor.step_complete("Building Engine", 0) is True
                config._monitor.phase_finish("Building Engine")
            config._cache.data = f"{version} timings".encode()
            head = {
                "version": version,
                "gpu": machine.cuda.gpu.name,
                "sha256": hashlib.sha256(network.onnx).hexdigest(),
            }
            return HostMemory(MAGIC + json.dumps(head).encode() + b"\n" + network.onnx)

    class ICudaEngine:
        def __init__(self, model):
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            self._inputs = {value.name: value for value in self._session.get_inputs()}
            self._outputs = {value.name: value for value in self._session.get_outputs()}

        @property
        def num_io_tensors(self):
            return len(self._inputs) + len(self._outputs)

        def get_tensor_name(self, index: int) -> str:
            return [*self._inputs, *self._outputs][index]

        def get_tensor_mode(self, name: str):
            return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

        def get_tensor_shape(self, name: str):
            return tuple({**self._inputs, **self._outputs}[name].shape)

        def get_tensor_dtype(self, name: str):
            kinds = {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF, "tensor(int8)": DataType.INT8}
            return kinds[{**self._inputs, **self._outputs}[name].type]

        def create_execution_context(self):
            return IExecutionContext(self)

    class IExecutionContext:
        def __init__(self, engine):
            self._engine, self._addresses = engine, {}

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return memory != 0

        def execute_async_v3(self, stream_handle: int) -> bool:
            cuda, engine = machine.cuda, self._engine
            assert stream_handle == cuda.stream
            feeds = {}
            for name, value in engine._inputs.items():
                dtype = module.nptype(engine.get_tensor_dtype(name))
                feeds[name] = np.frombuffer(bytes(cuda.memory[self._addresses[name]]), dtype).reshape(value.shape)
            for name, array in zip(engine._outputs, engine._session.run(None, feeds), strict=True):
                cuda.memory[self._addresses[name]][:] = array.tobytes()
            return True

    class Runtime:
        def __init__(self, logger: ILogger):
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes):
            data = bytes(serialized_engine)
            head, _, model = data.removeprefix(MAGIC).partition(b"\n")
            if not data.startswith(MAGIC) or json.loads(head)["version"] != version:
                self._logger.log(
                    Severity.ERROR, "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed"
                )
                return None
            return ICudaEngine(model)

    def nptype(trt_type: DataType):
        """tensorrt.nptype: the NumPy type of a DataType."""
        return {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT8: np.int8}[trt_type]

    module.fail_build = False
    module.nptype = nptype
    for one in (
        DataType, TensorIOMode, MemoryPoolType, NetworkDefinitionCreationFlag, ILogger, IProgressMonitor, OnnxParser,
        Builder, Runtime,
    ):  # fmt: skip
        setattr(module, one.__name__, one)
    return module
